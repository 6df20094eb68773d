"""Input rules on the wire: real people's names go in and come out as they are on both APIs, and what no name holds is
refused, with everything that is wrong said at once and nothing written."""

# ruff: noqa: E501  # a value is one line, or one of many on it

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.client import Reply
from tests.security.attacks import CREATE, PERSON
from tests.security.served import Served, served

ACCOUNT = "query ($id: String!) { getUserAccount(userAccountId: $id) { firstName lastName fullName } }"
SEARCH = "query ($term: String!) { searchUserAccounts(searchTerm: $term) { firstName } }"

NAMES = [
    # What denylists refuse
    "O'Brien", "Waldrop", "Drop", "Null", "None", "undefined", "NaN", "True", "null", "Select", "Union", "Delete",
    "Anne--Marie", "Robert'); DROP TABLE Students;--", "Script", "D'Angelo", "0", "-", "Test", "Root", "Admin",
    "admin'--", "#1", "N/A", "%", "_", "\\", "\\n", "$1", "${x}", "{{x}}", "X Æ A-12", "Jennifer 8. Lee", "B.B.", "3rd",
    # Punctuation of names
    "Jean-Luc", "Mary Ann", "J. R. R.", "van 't Hoff", "D’Arcy", "ʻOkina", "Kaʻiulani", "O’Neill", "Müller-Lüdenscheidt",
    # Scripts
    "太郎", "𠮷野", "𠮷", "𩸽", "髙橋", "山田　太郎", "はなこ", "ハナコ", "々", "李小龍", "葛\U000e0100城", "김철수", "Владимир",
    "Ольга", "Ђорђе", "Ґанна", "Ελένη", "محمد", "علیرضا", "می\u200cخواهم", "شِهاب", "דָּוִד", "יוֹסֵף", "नेहा", "क्‍ष", "र\u200d्यू",
    "ক্ষমা", "ਗੁਰਪ੍ਰੀਤ", "ગાંધી", "தமிழ்ச்செல்வி", "లక్ష్మి", "ಕನ್ನಡ", "മലയാളം", "സിന്ധു", "සිංහල", "ශ්‍රී", "สมชาย", "น้ำฝน",
    "ນາງ", "བཀྲ་ཤིས", "ཧྐྵྨླྺྼྻྂ", "မောင်", "ကျွန်ုပ်", "ხატია", "Արմեն", "አበበ", "ꦗꦮ", "ᠮᠣᠩᠭᠣᠯ\u180eᠠ", "ខ្មែរ", "ⵎⴰⵙⵙⵉⵏⵉⵙⵙⴰ", "ߡߊߡߊߘߎ߫",
    "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "𞤀𞤣𞤤𞤢𞤥", "ꤊꤢ꤬ꤛ", "ދިވެހި", "ܣܘܪܝܝܐ", "𐎀𐎁", "ᱥᱟᱱᱛᱟᱲᱤ", "ꯃꯅꯤꯄꯨꯔ", "ⲕⲟⲡⲧ", "Þórdís", "Ægir", "Łukasz", "Đặng", "Nguyễn",
    "Ñandú", "Gülşah", "İlker", "ſmith", "Ẹ̀kọ́", "Ọláolúwa", "Ngũgĩ", "ǃKora", "Ɓoɗo", "Pöõ", "ﬁona", "Ⅷ",
    # What the rules say of symbols: they are not refused, a name is whatever somebody goes by
    "👩‍🚀", "❤️", "Ke$ha", "P!nk", "☃",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("input")) as running:
        yield running


async def created(service: Served, person: dict[str, Any]) -> Reply:
    return await service.graphql("command", CREATE, {"input": person})


@pytest.mark.parametrize("name", NAMES, ids=[f"{number}" for number, _ in enumerate(NAMES)])
async def test_real_names_pass_on_both_apis(service: Served, name: str) -> None:
    reply = await created(service, {"firstName": name, "lastName": name, "emailAddress": "someone@example.com"})
    assert reply.status == 200
    assert "errors" not in reply.json(), (name, reply.body)
    account = reply.json()["data"]["createUserAccount"]["id"]
    token = reply.headers["kiseki-consistency-token"]
    stored = unicodedata.normalize("NFC", name)
    read = await service.graphql("query", ACCOUNT, {"id": account}, **{"kiseki-consistency-token": token})
    assert read.json()["data"]["getUserAccount"] == {
        "firstName": stored, "lastName": stored, "fullName": f"{stored} {stored}",
    }  # fmt: skip
    found = await service.graphql("query", SEARCH, {"term": name}, **{"kiseki-consistency-token": token})
    assert {"firstName": stored} in found.json()["data"]["searchUserAccounts"]


async def test_the_same_name_composed_and_not_is_one_name(service: Served) -> None:
    for given in ("Zoe\u0308", "Zo\u00eb", "\u212bke", "A\u030ake"):
        reply = await created(service, {**PERSON, "firstName": given})
        token = reply.headers["kiseki-consistency-token"]
        account = reply.json()["data"]["createUserAccount"]["id"]
        read = await service.graphql("query", ACCOUNT, {"id": account}, **{"kiseki-consistency-token": token})
        assert read.json()["data"]["getUserAccount"]["firstName"] in ("Zo\u00eb", "\u00c5ke")


async def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(service: Served) -> None:
    before = service.commits()
    secret = "Hidden\u202eName"
    reply = await created(service, {"firstName": secret, "lastName": "x" * 51, "emailAddress": "a b@c"})
    assert reply.status == 200
    body = reply.json()
    assert body["data"] == {"createUserAccount": None}
    (error,) = body["errors"]
    assert error["extensions"]["type"] == "ValidationError"
    assert {(tuple(one["path"]), one["code"]) for one in error["extensions"]["errors"]} == {
        (("input", "firstName"), "FORBIDDEN_CHARACTER"),
        (("input", "lastName"), "TOO_LONG"),
        (("input", "emailAddress"), "INVALID_EMAIL_ADDRESS"),
    }
    assert all(set(one) == {"path", "code", "message"} for one in error["extensions"]["errors"])
    assert "Hidden" not in json.dumps(body)
    assert "Hidden" not in service.log()
    assert service.commits() == before


async def test_lengths_are_of_code_points_after_normalisation(service: Served) -> None:
    for fits in ("𠮷" * 50, "e\u0301" * 50, "é" * 50, "👩" * 50):
        assert "errors" not in (await created(service, {**PERSON, "firstName": fits})).json(), fits
    for longer in ("𠮷" * 51, "e\u0301" * 51, "é" * 51, "\u0958" * 26):  # the last grows when it is normalised
        codes = (await created(service, {**PERSON, "firstName": longer})).json()["errors"][0]["extensions"]["errors"]
        assert [one["code"] for one in codes] == ["TOO_LONG"], longer


async def test_a_refusal_takes_no_longer_than_a_length_allows(service: Served) -> None:
    async with asyncio.timeout(5):
        for _ in range(20):
            await created(service, {**PERSON, "firstName": "a" + "\u0327\u0301" * 9_000})


EMAILS = {
    "someone@example.com": True, "o'brien@example.com": True, "a+b@example.co.jp": True, "太郎@例え.jp": True,
    "имя@пример.рф": True, "a@b.c": True, "x" * 64 + "@example.com": True, "a.b-c_d@sub.example.com": True,
    "": False, "nobody": False, "@example.com": False, "a@": False, "a@b": False, "a@@b.c": False, "a b@c.de": False,
    "a@b c.de": False, "a@.com": False, "a@b..c": False, "a@b.c.": False, "x" * 65 + "@example.com": False,
    "a@" + "b" * 95 + ".com": False, "a\n@b.cd": False, "a@b.cd\r\nBcc: x@y.zz": False, "a\0@b.cd": False,
    "<script>@b.cd": False, "a..b@c.de": False, "a,b@c.de": False, "a@[127.0.0.1]": False, "a@-b.cd": False,
    ".a@b.cd": False, "a.@b.cd": False, '"a"@b.cd': False,
    "a\u202e@b.cd": False, "a\u200b@b.cd": False, "a@b.cd\u2028": False,
}  # fmt: skip


@pytest.mark.parametrize(("address", "good"), EMAILS.items(), ids=[f"{number}" for number, _ in enumerate(EMAILS)])
async def test_email_addresses(service: Served, address: str, good: bool) -> None:
    before = service.commits()
    body = (await created(service, {**PERSON, "emailAddress": address})).json()
    assert ("errors" not in body) == good, body
    assert service.commits() == before + good


async def test_letters_from_all_over_unicode_come_back_as_they_are(service: Served) -> None:
    """Every 97th; `tests/unit/kernel/test_text_scripts.py` goes through all of them, without a wire."""
    letters = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point))[0] == "L"][::97]
    assert len(letters) > 1_200
    for start in range(0, len(letters), 20):
        name = unicodedata.normalize("NFC", "".join(letters[start : start + 20]))
        reply = await created(service, {**PERSON, "firstName": name})
        token = reply.headers["kiseki-consistency-token"]
        account = reply.json()["data"]["createUserAccount"]["id"]
        read = await service.graphql("query", ACCOUNT, {"id": account}, **{"kiseki-consistency-token": token})
        assert read.json()["data"]["getUserAccount"]["firstName"] == name
