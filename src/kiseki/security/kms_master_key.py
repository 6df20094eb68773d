"""`KmsMasterKey`: a master key in AWS KMS that never leaves it. Used by whoever composes keys on AWS.

Each key of a subject is one call of KMS when it is made and one when it is read, unless the Protector remembers it;
there is no key of ours between them. That costs 3 dollars for a million calls and keeps two things true: every use of a
subject's key is in CloudTrail, and who loses the right to decrypt loses it at once for all that is not in memory. The
client bounds how many calls run at once, so a page of 500 unknown subjects takes 16 or so round trips.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final, Self

from kiseki.clients.aws_json import AwsRefused, AwsUnavailable
from kiseki.clients.kms import KmsClient
from kiseki.kernel.errors import KisekiError
from kiseki.security.master_key import (
    MasterKeyMissing,
    MasterKeyRefused,
    MasterKeyUnavailable,
    WrappedKeyBroken,
    wrapped_by,
)

__all__ = ["CONTEXT_NAME", "KmsMasterKey"]

CONTEXT_NAME: Final = "kiseki-context"
"""The one name in the encryption context: IAM policies and grants may ask for it."""

_ARN: Final = re.compile(r"arn:(aws[a-z-]*):kms:([a-z0-9-]+):([0-9]{12}):(key/[A-Za-z0-9-]{1,128})")
_PROBE: Final = b"master-key-probe"
# Of a subject's key: it was altered, or belongs elsewhere.
_BROKEN: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException", "ValidationException"})
# People took them away and may give them back: what waits for a key waits on, and nothing is parked.
_WITHHELD: Final = {
    "AccessDeniedException": "the role may not use the key: allow kms:Encrypt and kms:Decrypt",
    "DisabledException": "the key is disabled: enable it",
    "KMSInvalidStateException": "the key is in a state in which it can't be used: cancel its deletion",
    "KeyUnavailableException": "the key is not available now",
}


class KmsMasterKey:
    """A symmetric key of KMS (a MasterKey). Belongs to one event loop.

    The encryption context is a hash of what a wrapped key is bound to: it stands in CloudTrail in the clear. Decrypting
    names the key, so a ciphertext of somebody else's key is refused even where the role could use that key.
    """

    def __init__(self, client: KmsClient, *, arn: str) -> None:
        """`open` is the way in. `arn` of the key, not of an alias."""
        self._client = client
        self._arn = arn
        self.key_id = _id_of(arn)

    @classmethod
    async def open(cls, client: KmsClient, key: str) -> Self:
        """`key` is an id, ARN, alias/name, or an alias's ARN; an alias counts as of now, and the key behind it is used.

        Encrypts and decrypts once, so that a missing right shows at the start. Closes the client when it fails.
        Raises MasterKeyMissing when there is no such key, MasterKeyRefused when it can't wrap, MasterKeyUnavailable.
        """
        try:
            context = _context(_PROBE)
            try:
                arn, wrapped = await client.encrypt(key, _PROBE, context)
            except AwsRefused as problem:
                raise _at_start(problem) from problem
            if not _ARN.fullmatch(arn):
                raise MasterKeyUnavailable("KMS answers with a key id that is no ARN of a key")
            master_key = cls(client, arn=arn)
            if await master_key.unwrap(b"%b\0%b" % (master_key.key_id.encode(), wrapped), _PROBE) != _PROBE:
                raise MasterKeyUnavailable("KMS decrypts to something else than it encrypted")
        except AwsUnavailable as problem:
            await client.close()
            raise MasterKeyUnavailable(f"the master key in KMS can't be used: {problem}") from problem
        except BaseException:
            await client.close()
            raise
        return master_key

    def reads(self, key_id: str) -> bool:
        """As MasterKey. Copies of a multi-Region key count as one key."""
        return key_id == self.key_id

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """As KeyWrapper: one call of KMS."""
        try:
            _, ciphertext = await self._client.encrypt(self._arn, plain, _context(context))
        except AwsUnavailable as problem:
            raise self._unavailable(problem) from problem
        except AwsRefused as problem:
            raise self._refusal(problem) from problem
        return b"%b\0%b" % (self.key_id.encode(), ciphertext)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As KeyWrapper: one call of KMS."""
        key_id = wrapped_by(wrapped)
        if not self.reads(key_id):
            raise MasterKeyMissing(f"a key was wrapped by the master key {key_id}; this process has {self.key_id}")
        ciphertext = wrapped[len(key_id) + 1 :]
        if not ciphertext:
            raise WrappedKeyBroken("a wrapped key was altered, or belongs to another subject")
        try:
            return await self._client.decrypt(self._arn, ciphertext, _context(context))
        except AwsUnavailable as problem:
            raise self._unavailable(problem) from problem
        except AwsRefused as problem:
            if problem.kind in _BROKEN:
                raise WrappedKeyBroken("a wrapped key was altered, or belongs to another subject") from None
            raise self._refusal(problem) from problem

    async def close(self) -> None:
        """As MasterKey."""
        await self._client.close()

    def _unavailable(self, problem: AwsUnavailable) -> MasterKeyUnavailable:
        return MasterKeyUnavailable(
            f"the master key {self.key_id} can't be used: {problem}", retry_after=problem.retry_after
        )

    def _refusal(self, problem: AwsRefused) -> KisekiError:
        if problem.kind == "NotFoundException":
            return MasterKeyMissing(f"KMS has no master key {self.key_id} any more")
        return MasterKeyUnavailable(
            f"the master key {self.key_id} can't be used: {_WITHHELD.get(problem.kind, problem.kind)}"
        )


def _at_start(problem: AwsRefused) -> KisekiError:
    if problem.kind == "NotFoundException":
        return MasterKeyMissing("KMS has no such key or alias in this account and region")
    if problem.kind in _WITHHELD:
        return MasterKeyUnavailable(f"the master key in KMS can't be used: {_WITHHELD[problem.kind]}")
    return MasterKeyRefused(
        f"the master key in KMS can't be used ({problem.kind}): it has to be a symmetric key for encryption"
    )


def _context(context: bytes) -> dict[str, str]:
    return {CONTEXT_NAME: sha256(context).hexdigest()}


def _id_of(arn: str) -> str:
    """The ARN; of a multi-Region key the same in every region: its copies read what the others wrapped."""
    match = _ARN.fullmatch(arn)
    if match is None:
        raise MasterKeyRefused("the master key in KMS is not named by the ARN of a key")
    partition, _, account, resource = match.groups()
    return f"arn:{partition}:kms:*:{account}:{resource}" if resource.startswith("key/mrk-") else arn
