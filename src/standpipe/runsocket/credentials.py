"""Short-lived AWS credentials, by the host's own identity; and which identity each pipeline gets.

The host's identity is its instance role, unless /etc/standpipe/aws-identity (an AWS configuration file,
root's alone) names another: keys, or a `credential_process` such as Roles Anywhere's. The variables AWS_* of
whoever calls decide nothing.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from standpipe import configuration, paths
from standpipe.errors import CredentialsRefused, CredentialsUnavailable
from standpipe.pipeline import Pipeline
from standpipe.runsocket.journal import warn
from standpipe.scan.secrets import Detector

if TYPE_CHECKING:
    from botocore.session import Session

LIFETIME = 900  # seconds; the shortest that STS grants
SERVED_FOR = timedelta(seconds=300)  # how long an answer is handed out again: the SDKs renew what has 10 minutes left
ANYWHERE = "us-east-1"  # where STS is asked when nothing names a region
AGAIN_AFTER = timedelta(seconds=30)  # how long an STS that does not answer is left alone, while keys are good
CONNECT_WITHIN, ANSWER_WITHIN = 3, 5  # seconds
METADATA = "169.254.169.254,fd00:ec2::254"  # where an instance asks for its role: no proxy knows it
TRUSTED = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Issued:
    """Credentials as STS issued them, for `arn`; they are good until `expires_at`."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)
    expires_at: datetime
    arn: str

    def as_answer(self) -> dict[str, str]:
        """Return what the container-credentials protocol has for an answer.

        Source: https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
        """
        return {
            "AccessKeyId": self.access_key_id,
            "SecretAccessKey": self.secret_access_key,
            "Token": self.token,
            "Expiration": self.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


@dataclass(frozen=True)
class Identity:
    """Who a pipeline is for AWS: `arn` is None where there is nobody, `expires` says in words for how long."""

    arn: str | None
    expires: str


class Vendor:
    """Vends one run's credentials: asks STS once in five minutes, however often it is asked."""

    def __init__(self, role_arn: str, session_name: str) -> None:
        """Keep whose they are."""
        self._role_arn = role_arn
        self._session_name = session_name
        self._lock = Lock()
        self._issued: Issued | None = None
        self._asked_at = datetime.min.replace(tzinfo=UTC)
        self._serves_for = SERVED_FOR

    def vend(self) -> Issued:
        """Return credentials with ten minutes left, or as many as there are while STS is silent.

        Raises CredentialsRefused.
        """
        with self._lock:
            now = datetime.now(UTC)
            is_due = not timedelta(0) <= now - self._asked_at <= self._serves_for
            if self._issued is None or is_due or now >= self._issued.expires_at:
                try:
                    self._issued, self._serves_for = assume(self._role_arn, self._session_name), SERVED_FOR
                except CredentialsUnavailable as error:
                    if self._issued is None or now >= self._issued.expires_at:
                        raise
                    warn(f"{self._session_name}: {error}; it is given the keys from before, until they expire")
                    self._serves_for = AGAIN_AFTER
                self._asked_at = now
            return self._issued


def session_name(pipeline: str, run: str) -> str:
    """Return the name of a role's session: AWS's own logs then tell which run it was."""
    return f"{pipeline}.{run}"


def assume(role_arn: str, name: str, identity: Path | None = None) -> Issued:
    """Assume a role by the host's identity, or by another one's file. Raises CredentialsRefused."""
    with refusals_told(f"the role {role_arn}"):
        answer = sts(session(identity)).assume_role(RoleArn=role_arn, RoleSessionName=name, DurationSeconds=LIFETIME)
    given = answer["Credentials"]
    return Issued(
        access_key_id=given["AccessKeyId"],
        secret_access_key=given["SecretAccessKey"],
        token=given["SessionToken"],
        expires_at=given["Expiration"].astimezone(UTC),
        arn=answer["AssumedRoleUser"]["Arn"],
    )


def identity_of(pipeline: Pipeline) -> Identity:
    """Ask AWS who a pipeline's containers are. Raises CredentialsRefused where they are refused."""
    if pipeline.credentials.mode == "vended":
        return identity_by_role(pipeline.credentials.role_arn or "", session_name(pipeline.name, "doctor"))
    if pipeline.credentials.mode == "file":
        path = paths.CREDENTIALS / pipeline.name
        return identity_by_keys(path.read_text(), str(path))
    return identity_of_the_instance()


def identity_by_role(role_arn: str, name: str, identity: Path | None = None) -> Identity:
    """Assume a role and say who one then is."""
    issued = assume(role_arn, name, identity)
    return Identity(issued.arn, f"after {LIFETIME // 60} minutes, and is renewed")


def identity_by_keys(text: str, where: str) -> Identity:
    """Ask who the keys in a credentials file's text are; `where` is what messages call it."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        section = parser["default"]
        keys = section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
    except (configparser.Error, KeyError) as error:
        raise CredentialsRefused(f"{where} is no AWS credentials file ({type(error).__name__})") from None
    asking = session()
    asking.set_credentials(*keys)
    with refusals_told(f"the keys of {where}"):
        arn = sts(asking, section.get("endpoint_url")).get_caller_identity()["Arn"]
    return Identity(arn, "when AWS says so: it has a session token" if keys[2] else "never by itself")


@cache
def identity_of_the_instance() -> Identity:
    """Ask who the host's instance role is; nobody is an answer, too."""
    asking = session()
    role = asking.get_component("credential_provider").get_provider("iam-role").load()
    if role is None:
        return Identity(None, "there is no instance role here")
    with refusals_told("the host's instance role"):
        frozen = role.get_frozen_credentials()
        asking.set_credentials(frozen.access_key, frozen.secret_key, frozen.token)
        arn = sts(asking).get_caller_identity()["Arn"]
        expires = role._expiry_time.astimezone(UTC)  # botocore has no public name for it
    return Identity(arn, f"at {expires:%Y-%m-%d %H:%M} UTC, and is renewed")


def session(identity: Path | None = None) -> Session:
    """Return a session by the host's identity, or by another one's file; it asks through the host's proxy."""
    import botocore.session

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    settings = configuration.settings()
    if settings.http_proxy:  # a credential_process reads the environment, too
        os.environ |= {"http_proxy": settings.http_proxy, "https_proxy": settings.http_proxy}
        os.environ["no_proxy"] = ",".join(filter(None, (settings.no_proxy, METADATA)))
    made = botocore.session.Session()
    made.set_config_variable("config_file", str(identity or paths.AWS_IDENTITY))
    made.set_config_variable("credentials_file", os.devnull)
    if Path(TRUSTED).exists():
        made.set_config_variable("ca_bundle", TRUSTED)  # who the host trusts
    return made


def sts(asking: Session, endpoint_url: str | None = None) -> Any:
    """Return a client of STS that gives up soon; of the session's own endpoint, if no other is given."""
    from botocore.config import Config

    bounds = Config(connect_timeout=CONNECT_WITHIN, read_timeout=ANSWER_WITHIN, retries={"total_max_attempts": 2})
    region = asking.get_config_variable("region") or ANYWHERE
    return asking.create_client("sts", region_name=region, endpoint_url=endpoint_url, config=bounds)


@contextmanager
def refusals_told(what: str) -> Iterator[None]:
    """Put what AWS or its SDK says in words, without a secret."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        told = error.response.get("Error", {})
        said = Detector().masked(f"{told.get('Code', 'no code')}: {told.get('Message', '')}")
        raise CredentialsRefused(f"AWS refuses {what} ({said})") from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        remedy = "Give it an instance role, or set aws_source_identity"
        raise CredentialsRefused(
            f"{what} is not to be had: this host has no AWS identity of its own. {remedy}"
        ) from None
    except exceptions.CredentialRetrievalError:  # it repeats what the process printed
        raise CredentialsRefused(f"{what} is not to be had: the host's credential_process failed") from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        kind = type(error).__name__
        raise CredentialsUnavailable(f"STS does not answer ({kind}): nothing is known of {what}") from None
    except exceptions.BotoCoreError as error:
        raise CredentialsRefused(f"{what} is not to be had ({type(error).__name__})") from None
