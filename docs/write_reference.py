"""References that are written from the code at every build of the site: the protocol from its comments, the settings.

`python docs/write_reference.py FOLDER` writes `protocol-reference.md` and `configuration.md`; `make docs` does. Nothing
of them is kept in the repository, so nothing can go out of date.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from fedrecon.ops.settings import Settings, room_settings, variable_of

ROOT = Path(__file__).resolve().parent.parent
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD, _NESTED, _NESTED_ENUM = 4, 5, 6, 2, 2, 2, 3, 4
"""Numbers of what a comment belongs to, as descriptor.proto has them."""

_TYPES = {
    value.number: name.removeprefix("TYPE_").lower()
    for name, value in FieldDescriptorProto.Type.DESCRIPTOR.values_by_name.items()
}
Comments = Mapping[tuple[int, ...], str]


def main(folder: Path) -> None:
    """Write both references into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "protocol-reference.md").write_text(protocol_reference(compiled()))
    (folder / "configuration.md").write_text(configuration())


def compiled() -> FileDescriptorSet:
    """Compile the protos, with their comments."""
    buf = str(Path(sys.executable).parent / "buf")
    command = [buf, "build", str(ROOT / "protos"), "--as-file-descriptor-set", "--output", "-#format=binpb"]
    return FileDescriptorSet.FromString(subprocess.run(command, check=True, capture_output=True).stdout)


def protocol_reference(files: FileDescriptorSet) -> str:
    """Return every service, message and enum of the contract with what its comments say, in Markdown."""
    lines = ["# Protocol reference", "", "Written from the comments of `protos/fedrecon/v1`.", ""]
    for file in files.file:
        if file.package == "fedrecon.v1":
            lines += _file_lines(file)
    return "\n".join(lines) + "\n"


def _file_lines(file: FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(each.path): _said(each.leading_comments) for each in file.source_code_info.location}
    yield f"## {file.name.rpartition('/')[2]}"
    for number, service in enumerate(file.service):
        yield from ("", f"### {service.name}", comments.get((_SERVICE, number), ""), "")
        yield from ("| call | request | answer | |", "|---|---|---|---|")
        for index, method in enumerate(service.method):
            request = f"{'stream of ' if method.client_streaming else ''}{_short(method.input_type)}"
            answer = f"{'stream of ' if method.server_streaming else ''}{_short(method.output_type)}"
            yield f"| `{method.name}` | {request} | {answer} | {_cell(comments, (_SERVICE, number, _METHOD, index))} |"
    for number, message in enumerate(file.message_type):
        yield from _message_lines(message, (_MESSAGE, number), comments, message.name)
    for number, kind in enumerate(file.enum_type):
        yield from _enum_lines(kind, (_ENUM, number), comments, kind.name)
    yield ""


def _message_lines(message: DescriptorProto, path: tuple[int, ...], comments: Comments, name: str) -> Iterator[str]:
    if message.options.map_entry:
        return
    yield from ("", f"### {name}", comments.get(path, ""), "")
    if message.field:
        yield from ("| number | field | type | |", "|---|---|---|---|")
    for index, field in enumerate(message.field):
        is_many = field.label == FieldDescriptorProto.LABEL_REPEATED
        kind = _short(field.type_name) if field.type_name else _TYPES[field.type]
        meaning = _cell(comments, (*path, _FIELD, index))
        yield f"| {field.number} | `{field.name}` | {'many ' if is_many else ''}{kind} | {meaning} |"
    for index, nested in enumerate(message.nested_type):
        yield from _message_lines(nested, (*path, _NESTED, index), comments, f"{name}.{nested.name}")
    for index, kind_of_it in enumerate(message.enum_type):
        yield from _enum_lines(kind_of_it, (*path, _NESTED_ENUM, index), comments, f"{name}.{kind_of_it.name}")


def _enum_lines(kind: EnumDescriptorProto, path: tuple[int, ...], comments: Comments, name: str) -> Iterator[str]:
    yield from ("", f"### {name}", comments.get(path, ""), "", "| number | value | |", "|---|---|---|")
    for index, value in enumerate(kind.value):
        yield f"| {value.number} | `{value.name}` | {_cell(comments, (*path, _VALUE, index))} |"


def _short(name: str) -> str:
    return name.removeprefix(".fedrecon.v1.").removeprefix(".")


def _said(comment: str) -> str:
    """Returns a comment without what would be read as HTML or as a table."""
    return re.sub(r"[ \t]+", " ", comment).strip().replace("<", "&lt;")


def _cell(comments: Comments, path: tuple[int, ...]) -> str:
    return comments.get(path, "").replace("\n", " ").replace("|", "\\|")


def configuration() -> str:
    """Return every setting of every service, in Markdown."""
    lines = [
        "# Configuration",
        "",
        "Written from the settings of the services. A variable that no service knows is an error. Any of them may be a",
        "file of that name in the folder `FEDRECON_SECRETS_FOLDER`. `fedrecon settings` prints those of a machine.",
    ]
    shared = Settings.model_fields
    lines += _settings_lines("Of every service", shared)
    for room, settings in sorted(room_settings()[0].items()):
        own = {name: field for name, field in settings.model_fields.items() if name not in shared}
        lines += _settings_lines(f"Of the {room}" if room != "inference" else "Of inference", own)
    return "\n".join(lines) + "\n"


def _settings_lines(heading: str, fields: Mapping[str, FieldInfo]) -> Sequence[str]:
    lines = ["", f"## {heading}", "", "| variable | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "" if default in {None, ""} else f"`{default}`"
        lines.append(f"| `{variable_of(name)}` | {shown} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return lines


if __name__ == "__main__":
    main(Path(sys.argv[1]))
