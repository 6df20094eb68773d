"""`Answers`: what AWS might say of a new resource: ARNs and names in its own form, the same for the same resource.

With these a plan knows everything, so that it can be compared with what the application reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["ACCOUNT", "Answers"]

ACCOUNT: Final = "123456789012"

_NAMES: Final = (
    "name", "identifier", "bucket", "family", "function_name", "dashboard_name", "replication_group_id", "user_id",
    "alarm_name", "user_group_id", "cluster_id", "id",
)  # fmt: skip
"""Arguments that name a resource, the most telling first."""
_SERVICES: Final = {
    "alb": "elasticloadbalancing",
    "appautoscaling": "application-autoscaling",
    "db": "rds",
    "eip": "ec2",
    "lb": "elasticloadbalancing",
    "security": "ec2",
    "subnet": "ec2",
    "vpc": "ec2",
    "cloudwatch_log": "logs",
    "scheduler": "scheduler",
}
"""Services in ARNs where the type's name says another."""
_ARN_IN_VAULT: Final = "arn:aws:secretsmanager:{region}:{account}:secret:{name}-AbCdEf"
_FORMS: Final = {
    "aws_backup_vault": "arn:aws:backup:{region}:{account}:backup-vault:{name}",
    "aws_cloudwatch_log_group": "arn:aws:logs:{region}:{account}:log-group:{name}",
    "aws_cloudwatch_metric_alarm": "arn:aws:cloudwatch:{region}:{account}:alarm:{name}",
    "aws_db_instance": "arn:aws:rds:{region}:{account}:db:{name}",
    "aws_dynamodb_table": "arn:aws:dynamodb:{region}:{account}:table/{name}",
    "aws_ecr_repository": "arn:aws:ecr:{region}:{account}:repository/{name}",
    "aws_ecs_cluster": "arn:aws:ecs:{region}:{account}:cluster/{name}",
    "aws_ecs_task_definition": "arn:aws:ecs:{region}:{account}:task-definition/{name}:1",
    "aws_iam_policy": "arn:aws:iam::{account}:policy/{name}",
    "aws_iam_role": "arn:aws:iam::{account}:role/{name}",
    "aws_kms_key": "arn:aws:kms:{region}:{account}:key/{number}",
    "aws_kms_replica_key": "arn:aws:kms:{region}:{account}:key/{number}",
    "aws_lambda_function": "arn:aws:lambda:{region}:{account}:function:{name}",
    "aws_lb": "arn:aws:elasticloadbalancing:{region}:{account}:loadbalancer/app/{name}/{number}",
    "aws_lb_listener": "arn:aws:elasticloadbalancing:{region}:{account}:listener/app/{number}/{number}",
    "aws_lb_listener_rule": "arn:aws:elasticloadbalancing:{region}:{account}:listener-rule/app/{number}/{number}",
    "aws_lb_target_group": "arn:aws:elasticloadbalancing:{region}:{account}:targetgroup/{name}/{number}",
    "aws_s3_bucket": "arn:aws:s3:::{name}",
    "aws_secretsmanager_secret": _ARN_IN_VAULT,
    "aws_sns_topic": "arn:aws:sns:{region}:{account}:{name}",
}
_NAMED: Final = frozenset({"aws_s3_bucket", "aws_iam_role", "aws_ecs_service", "aws_cloudwatch_log_group"})
"""Types whose `id` is their name."""


class Answers:
    """Answers for one resource of a plan."""

    def __init__(self, kind: str, planned: Mapping[str, Any], region: str) -> None:
        self._kind = kind
        self._planned = planned
        given = planned.get("region")
        self._region = given if isinstance(given, str) else region
        named = [planned[name] for name in _NAMES if isinstance(planned.get(name), str)]
        seed = repr(sorted((name, value) for name, value in planned.items() if isinstance(value, str | int)))
        self._number = hashlib.sha256(f"{kind} {seed}".encode()).hexdigest()[:16]
        self._name = named[0] if named else f"{kind.removeprefix('aws_')}-{self._number}"

    def __call__(self, name: str, kind: Any) -> Any:
        """What AWS might say of the attribute `name`, of this type."""
        known = self._known(name)
        if known is not None:
            return known
        if isinstance(kind, str):
            return {"string": f"{self._name}.{name}", "number": 0, "bool": False}.get(kind)
        if kind[0] == "object":
            return {inner: self(inner, of) for inner, of in kind[1].items()}
        if kind[0] == "map":
            return {}
        # One of what AWS lists with names of its own, such as the DNS entries of an endpoint; of plain values none.
        return [self(name, kind[1])] if kind[1][0] == "object" else []

    def _known(self, name: str) -> Any:
        simple = {
            "region": self._region,
            "owner_id": ACCOUNT,
            "arn": self._arn,
            "id": self._name if self._kind in _NAMED else f"{self._kind.removeprefix('aws_')}-{self._number}",
            "stream_arn": f"{self._arn}/stream/2026-01-01T00:00:00.000",
            "arn_suffix": self._arn.rpartition("loadbalancer/")[2].rpartition(":")[2],
        }
        if name in simple:
            return simple[name]
        special: Mapping[tuple[str, str], Any] = {
            ("aws_acm_certificate", "domain_validation_options"): [
                {
                    "domain_name": domain,
                    "resource_record_name": f"_proof.{domain}.",
                    "resource_record_type": "CNAME",
                    "resource_record_value": f"_{self._number}.acm-validations.aws.",
                }
                for domain in self._domains
            ],
            ("aws_db_instance", "address"): f"{self._name}.{self._number}.{self._region}.rds.amazonaws.com",
            ("aws_db_instance", "resource_id"): f"db-{self._number.upper()}",
            ("aws_db_instance", "master_user_secret"): [
                {
                    "kms_key_id": f"arn:aws:kms:{self._region}:{ACCOUNT}:key/{self._number}",
                    "secret_arn": _ARN_IN_VAULT.format(
                        region=self._region, account=ACCOUNT, name=f"rds!db-{self._number}"
                    ),
                    "secret_status": "active",
                }
            ],
            ("aws_ecr_repository", "repository_url"): f"{ACCOUNT}.dkr.ecr.{self._region}.amazonaws.com/{self._name}",
            ("aws_kms_key", "key_id"): self._number,
            ("aws_lb", "dns_name"): f"{self._name}-1.{self._region}.elb.amazonaws.com",
            ("aws_lambda_event_source_mapping", "uuid"): self._number,
        }
        return special.get((self._kind, name))

    @property
    def _domains(self) -> list[str]:
        more = self._planned.get("subject_alternative_names")
        return sorted({self._planned.get("domain_name"), *(more if isinstance(more, list) else [])} - {None})

    @property
    def _arn(self) -> str:
        words = self._kind.removeprefix("aws_").split("_")
        service = _SERVICES.get("_".join(words[:2])) or _SERVICES.get(words[0]) or words[0]
        form = _FORMS.get(
            self._kind, f"arn:aws:{service}:{{region}}:{{account}}:{'-'.join(words[1:] or words)}/{{name}}"
        )
        return form.format(region=self._region, account=ACCOUNT, name=self._name, number=self._number)
