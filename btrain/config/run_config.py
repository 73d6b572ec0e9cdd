"""run.yaml read, checked and completed: the contract that all peers share, and what belongs to this machine."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import PrivateAttr, ValidationError
from ruamel.yaml import YAML

from btrain.config.checks import cross_checks
from btrain.config.contract import CONTRACT_BYTES_MAX, canonical_bytes
from btrain.config.document import FILE_BYTES_MAX, Document, KeyPath, Override, parse_document, parse_override
from btrain.config.problems import config_error, problems_of
from btrain.config.schema import Fields, Parent
from btrain.errors import ConfigError
from btrain.identity import peer_id_bytes
from btrain.protocol.closing import FINAL_SWEEP
from btrain.protocol.quorum import byzantine_limit, validators_max

_HEADER = """\
# Everything above `local:` is the contract: equal for all peers of the run, whoever differs is refused and told where.
# What stands under `local:` belongs to this machine.
"""


class RunConfig(Fields):
    """A valid run.yaml. Made by `load` and `loads`; every value is resolved (b, start_when, run_dir)."""

    _document: Document = PrivateAttr(default_factory=lambda: Document("defaults", {}))

    @property
    def members(self) -> tuple[bytes, ...]:
        """Public keys of `group.members` in member order; empty if the founders are whoever comes first."""
        return tuple(sorted(peer_id_bytes(text) for text in self.group.members))

    @property
    def banned(self) -> tuple[bytes, ...]:
        """Public keys of who was banned in the run that this one goes on from."""
        return () if self.fork_from is None else tuple(peer_id_bytes(text) for text in self.fork_from.banned)

    @property
    def validators(self) -> int:
        """Most validators that a round of the founders draws."""
        return validators_max(self.group.start_when, self.verification.audits_per_round)

    @property
    def byzantine_limit(self) -> int:
        """The largest `group.byzantine_max` that the founders' number allows."""
        return byzantine_limit(self.group.start_when, self.validators)

    def model_options(self) -> dict[str, Any]:
        """The `model` section as plain data: {builtin: gpt, layers: 2, ...}; raises ConfigError if there is none."""
        self.require("model")
        if self.model is None:
            return {}
        return self.model.model_dump(exclude={"start", "fingerprint"}, exclude_none=True)

    def data_options(self) -> dict[str, Any]:
        """What `btrain.data.open_source` takes: the `data` section, with `local.data_path` in place of its own path."""
        self.require("data")
        if self.data is None:
            return {}
        options = self.data.model_dump(exclude={"fingerprint"}, exclude_none=True)
        if self.local.data_path is not None:
            key = next((key for key in ("text", "tokens") if key in options), "path")
            options[key] = str(self.local.data_path)
        return options

    def contract(self) -> dict[str, Any]:
        """What all peers agree on, as plain data: nothing of this machine, nothing unset, durations as text, peer ids
        sorted."""
        contract = _given(self.model_dump(mode="json", by_alias=True, exclude={"local": True, "model": {"start"}}))
        contract["group"]["members"] = sorted(contract["group"]["members"])
        return contract

    def contract_bytes(self) -> bytes:
        """The canonical form of the contract, at most 32 KiB."""
        return canonical_bytes(self.contract())

    def contract_hash(self) -> bytes:
        """SHA-256 of `contract_bytes`, 32 bytes."""
        return hashlib.sha256(self.contract_bytes()).digest()

    def error(self, key: str, message: str) -> ConfigError:
        """An error about the value of `key` (`data.text`), for what only turns out later: a file that is not there."""
        path: KeyPath = tuple(key.split("."))
        return ConfigError(self._document.error(path, message))

    def require(self, *keys: str) -> None:
        """Raise ConfigError unless the file names all of these top-level keys."""
        absent = [key for key in keys if getattr(self, key) is None]
        if absent:
            raise config_error([self._document.error((key,), "missing; this key is required") for key in absent])

    def with_fingerprint(self, fingerprint: str) -> Self:
        """A copy whose contract names the data by content; raises ConfigError if the file names other content."""
        if self.data is None:
            raise self.error("data", "missing")
        named = self.data.fingerprint
        if named not in {None, fingerprint}:
            raise self.error("data.fingerprint", f"expected {named}, but the data here is {fingerprint}")
        return self.model_copy(update={"data": self.data.model_copy(update={"fingerprint": fingerprint})})

    def with_parameters(self, fingerprint: str) -> Self:
        """A copy whose contract names the first parameters by content; raises ConfigError if it names others."""
        if self.model is None:
            raise self.error("model", "missing")
        named = self.model.fingerprint
        if named not in {None, fingerprint}:
            raise self.error("model.fingerprint", f"expected {named}, but the file of model.from holds {fingerprint}")
        return self.model_copy(update={"model": self.model.model_copy(update={"fingerprint": fingerprint})})

    def with_parent(self, parent: Parent) -> Self:
        """A copy whose contract names the run that it goes on from; raises ConfigError if it names another one."""
        if self.fork_from is not None:
            for key in Parent.model_fields:
                named, found = getattr(self.fork_from, key), getattr(parent, key)
                if named != found:
                    raise self.error(f"fork_from.{key}", f"expected {named}, but the run to go on from has {found}")
        return self.model_copy(update={"fork_from": parent})

    def completed_by(self, before: RunConfig) -> Self:
        """A copy with what only the data, the first parameters and the parent run themselves would tell, as an earlier
        configuration of the run tells it."""
        config, data, model = self, before.data, before.model
        if config.data is not None and config.data.fingerprint is None and data is not None and data.fingerprint:
            config = config.with_fingerprint(data.fingerprint)
        if config.model is not None and config.model.start is not None and model is not None and model.fingerprint:
            config = config.with_parameters(model.fingerprint)
        if config.local.fork_from is not None and before.fork_from is not None:
            config = config.with_parent(before.fork_from)
        return config

    @property
    def start_fingerprint(self) -> str | None:
        """What x[0] is where it is not built from the seed."""
        if self.fork_from is not None:
            return self.fork_from.fingerprint
        return None if self.model is None else self.model.fingerprint

    def to_yaml(self) -> str:
        """A file that reads back as this very configuration, values from the command line and defaults included."""
        yaml = YAML(pure=True)
        yaml.width = FILE_BYTES_MAX
        yaml.allow_unicode = False
        stream = io.StringIO()
        yaml.dump(_given(self.model_dump(mode="json", by_alias=True)), stream)
        return _HEADER + stream.getvalue()


def load(
    path: str | os.PathLike[str], overrides: Sequence[str | Override] = (), *, peers: int | None = None
) -> RunConfig:
    """Read a file. `overrides` and `peers` as in `loads`. Raises ConfigError for an unreadable or a wrong file."""
    return loads(read_text(path, "`btrain init gpt` writes one"), os.fspath(path), overrides, peers=peers)


def read_text(path: str | os.PathLike[str], if_absent: str) -> str:
    """The text of a file. Raises ConfigError if it cannot be read; `if_absent` says where to get one."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file; {if_absent}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name}: cannot be read: {reason}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text") from None


def loads(
    text: str, name: str = "run.yaml", overrides: Sequence[str | Override] = (), *, peers: int | None = None
) -> RunConfig:
    """Check a configuration given as text; `name` is what errors call it.

    overrides: `group.start_when=3` as given to --set, or Override. peers: the number of local peers that a swarm or a
    simulation makes itself; it becomes `group.start_when`, with the most Byzantine members that it allows and no list
    of members, unless an override says otherwise. Raises ConfigError naming every wrong line, up to ten.
    """
    document = parse_document(text, name)
    if peers is not None:
        document = _for_local_peers(document, peers)
    for override in overrides:
        document = document.overridden(parse_override(override) if isinstance(override, str) else override)
    return _checked(document)


def defaults() -> RunConfig:
    """What a lone `btrain.Optimizer` trains under: one member, no file."""
    return loads("run: alone", "defaults")


def _for_local_peers(document: Document, peers: int) -> Document:
    document = document.overridden(Override("group.start_when", peers, f"--peers {peers}"))
    group = document.data["group"]
    group.pop("members", None)
    group.pop("byzantine_max", None)
    if group.get("admission") == "allowlist":
        del group["admission"]
    return document


def _checked(document: Document) -> RunConfig:
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        raise config_error(list(problems_of(error, document))) from None
    config = _completed(config)
    config._document = document
    problems = [document.error(path, message) for path, message in cross_checks(config)]
    contract_bytes = len(config.contract_bytes())
    if contract_bytes > CONTRACT_BYTES_MAX:
        problems.append(
            f"{document.name}: a contract of {contract_bytes} bytes; at most {CONTRACT_BYTES_MAX} are allowed"
        )
    if problems:
        raise config_error(problems)
    return config


def _completed(config: RunConfig) -> RunConfig:
    """The values that follow from others, where the file does not give them."""
    group, local = config.group, config.local
    if group.members and "start_when" not in group.model_fields_set:
        group = group.model_copy(update={"start_when": len(group.members)})
    if "byzantine_max" not in group.model_fields_set:
        validators = validators_max(group.start_when, config.verification.audits_per_round)
        group = group.model_copy(update={"byzantine_max": byzantine_limit(group.start_when, validators)})
    if "invitations" not in group.model_fields_set:
        group = group.model_copy(update={"invitations": group.byzantine_max + 1})
    verification = config.verification
    if "final_sweep" not in verification.model_fields_set and verification.sweep and verification.audits_per_round:
        verification = verification.model_copy(update={"final_sweep": FINAL_SWEEP})
    if "run_dir" not in local.model_fields_set:
        local = local.model_copy(update={"run_dir": Path("runs") / config.run})
    return config.model_copy(update={"group": group, "verification": verification, "local": local})


def _given(section: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that are not set, so that a field added later changes no contract; arguments stay."""
    return {
        key: _given(value) if isinstance(value, dict) and key != "args" else value
        for key, value in section.items()
        if value is not None
    }
