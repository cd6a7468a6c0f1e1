"""What a published family of weights is: the record that its file tells once.

The engine (recognise, plan, export, card) reads records only, so that another released family is
one more file with a record, named in recognise.RECORDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError, Names, Weights
from paella_jax.typing import Tree

# Where a field's value is from.
SHAPES, JSON, COMMAND, DEFAULT = "the weights", "its config.json", "the command line", "default"
# Config field -> its value and where that is from.
Found = dict[str, tuple[Any, str]]
DRAW = 'python -m paella_jax.sample --checkpoint {out} --prompt "a red circle" --out grid.png'
REQUIRED = object()


class Field(NamedTuple):
    """An argument of a foreign class that holds a field of ours, in another form.

    Attributes:
      ours: name of the field.
      read: argument's value and the whole foreign config -> our value.
      write: our value and module -> the argument's value.
      default: the argument's value where a config leaves it out.
    """

    ours: str
    read: Callable[[Any, Mapping[str, Any]], Any] = lambda value, config: value
    write: Callable[[Any, Any], Any] = lambda value, module: value
    default: Any = REQUIRED


class Fixed(NamedTuple):
    """An argument that our network has in one value only: checked and written."""

    value: Any


class Written(NamedTuple):
    """An argument that is not read: `told` by the caller of `write` by that name, or `value`."""

    value: Any = None
    told: str = ""


TUPLE = {"read": lambda value, config: tuple(value), "write": lambda value, module: list(value)}


@dataclass(frozen=True)
class ForeignConfig:
    """A foreign class's config.json <-> our module, told once for both ways.

    Attributes:
      class_name: of the class.
      make: our module's.
      arguments: the class's, in the order they are written in; a name stands for our field of the
        same value.
      optional: what a config leaves out has our module's default.
      lacks: fields of ours that the class does not have, and the value it stands for.
      check: refuses modules that the class cannot be.
    """

    class_name: str
    make: Callable[..., Any]
    arguments: Mapping[str, str | Field | Fixed | Written]
    optional: bool = False
    lacks: Mapping[str, Any] | None = None
    check: Callable[[Any], None] = lambda module: None

    @property
    def fields(self) -> dict[str, Field]:
        """Argument -> the field of ours that it holds."""
        named = {n: Field(a) if isinstance(a, str) else a for n, a in self.arguments.items()}
        return {name: field for name, field in named.items() if isinstance(field, Field)}

    def read(self, config: Mapping[str, Any]) -> Any:
        """Our module.

        Raises:
          ValueError: an option that our network does not have.
          KeyError: an argument is missing.
        """
        for name, argument in self.arguments.items():
            fixed = argument.value if isinstance(argument, Fixed) else None
            if isinstance(argument, Fixed) and config.get(name, fixed) != fixed:
                raise ValueError(f"{name} {config[name]!r} is not supported, only {fixed!r}")
        values = {}
        for name, field in self.fields.items():
            if name in config or field.default is not REQUIRED:
                values[field.ours] = field.read(config.get(name, field.default), config)
            elif not self.optional:
                raise KeyError(name)
        return self.make(**values)

    def read_file(self, file: Path) -> Any:
        """Our module for a config.json.

        Raises:
          ConversionError: it is of another class, or lacks arguments.
          ValueError: it has an option that ours does not have.
        """
        config = weights_file.read_json(file)
        if config.get("_class_name") != self.class_name:
            raise ConversionError(
                f"{file} is of a {config.get('_class_name')!r}, not of a {self.class_name}"
            )
        with weights_file.errors_name(file):
            try:
                return self.read(config)
            except KeyError as error:
                raise ConversionError(f"has no field {error}; download it again") from error

    def write(self, module: Any, **told: Any) -> dict[str, Any]:
        """What config.json holds.

        Raises:
          ConversionError, ValueError: a network that the class cannot be.
        """
        for name, needed in (self.lacks or {}).items():
            value = getattr(module, name)
            if value != needed:
                raise ConversionError(
                    f"model.{name} is {value!r}, diffusers' {self.class_name} has {needed!r} only; "
                    "use --export original"
                )
        self.check(module)
        written: dict[str, Any] = {"_class_name": self.class_name}
        for name, argument in self.arguments.items():
            if isinstance(argument, Written):
                written[name] = told.get(argument.told, argument.value)
            elif isinstance(argument, Fixed):
                written[name] = argument.value
            else:
                field = self.fields[name]
                written[name] = field.write(getattr(module, field.ours), module)
        return written


class Need(NamedTuple):
    """A frozen network that a run takes along.

    Attributes:
      field: of the config, that the option of the same key stands for.
      placeholder: the option's value in messages; empty for a network that a run can draw without.
    """

    field: str
    placeholder: str = ""


class Beside(NamedTuple):
    """A second network in a family's runs, published in an entry or a file of its own.

    Attributes:
      name: of its option, of its export form and in the run's tree.
      entry: of the released torch file.
      names: its table.
      make: config -> module.
      found: its tensors, and the config fields that the command line tells -> config fields.
      check: tensors and config; refuses what does not fit the family's network.
      of_run: run folder -> its variables.
      missing: what is said of weights without it, after the file's name.
    """

    name: str
    entry: str
    names: Names
    make: Callable[[ConfigDict], Any]
    found: Callable[[Weights, set[str]], Found]
    check: Callable[[Weights, ConfigDict], None]
    of_run: Callable[[str | Path], Tree]
    missing: str


class FolderFormat(NamedTuple):
    """A published folder of several networks.

    Attributes:
      open: path -> the opened folder, with `path`, `weights`, `tokenizer` and its
        `tokenizer_family`, `found` config fields, `files` and `source`; None for other paths.
      check: config, opened folder and its tokenizer's config; refuses what does not fit.
      carry: opened folder, its tokenizer's config and tree -> into a new run folder.
      open_run: run folder, config and module -> what of the folder a run holds, checked.
      write: that, a folder, tensors, their dtype and a report -> the parts the run lacks.
    """

    open: Callable[[str | Path], Any]
    check: Callable[[ConfigDict, Any, ConfigDict], None]
    carry: Callable[[Any, ConfigDict, Tree, Path], None]
    open_run: Callable[[str | Path, ConfigDict, Any], Any]
    write: Callable[..., list[str]]


@dataclass(frozen=True)
class Released:
    """One published family of weights.

    Attributes:
      family: its name as an option and in messages; two architectures may share one.
      title: of the card; `usage`: the card's example.
      marks: names of tensors, any one of which is enough, so that a damaged file is recognised.
      runs: config field -> value: which runs are of this family.
      preset: config of the released network, whose fields stand where the weights do not tell.
      make: config and tensors (None for those of no file) -> module.
      names: its table.
      own: key of its parameters in a run's tree.
      infer: tensors -> fields of the network, by their shapes.
      block: of the config, which those fields fill; `codebook_size` is always in `model`.
      heads: fields with numbers of heads -> the field of the widths they divide; and the released
        width of a head.
      foreign: diffusers' config.json.
      told: fields that it tells and the weights do not; None where it tells all, so that a layer
        that is missing from the file is noticed.
      forms: that its runs are exported in.
      groups: other names of --family that stand for it too.
      averaged: entry of a torch file that is taken rather than the other one, where both are.
      extra: tensors and inferred fields -> further config fields.
      settle: config, tensors and the tokenizer's config -> fields that follow from those.
      tree: loaded variables -> a run's tree; `of_run`: its parameters and state -> variables.
      training_only: networks of a run that no export tells of.
      needs: option -> frozen network to take along.
      together: the others need the tokenizer.
      tokenizer: the tokenizer's field that must equal this config's, and its plural in messages.
      check: config, tensors and the tokenizer's config; refuses networks that do not fit.
      carry: config and folder: copies the networks into a new run folder.
      refuse: raises ConversionError for relatives of the family that are not supported.
      check_run: raises ConversionError for runs that no published network is.
      write_told: config and exported tensors -> what `foreign.write` must be told.
      beside: a second network of its runs.
      folder: how a published folder of several networks is opened and written.
    """

    family: str
    title: str
    usage: str
    marks: tuple[str, ...]
    runs: Mapping[str, str]
    preset: str
    make: Callable[..., Any]
    names: Names
    own: str
    infer: Callable[[Weights], dict[str, Any]]
    block: str = "model"
    heads: tuple[Mapping[str, str], int] = ({}, 0)
    foreign: ForeignConfig | None = None
    told: tuple[str, ...] | None = ()
    forms: tuple[str, ...] = ("original",)
    groups: tuple[str, ...] = ()
    averaged: tuple[str, str] | None = None
    extra: Callable[[Weights, Mapping[str, Any]], Found] = lambda weights, fields: {}
    settle: Callable[[ConfigDict, Weights, ConfigDict | None], Found] = lambda *known: {}
    tree: Callable[[Tree], Tree] | None = None
    of_run: Callable[[Tree, Tree], Tree] | None = None
    training_only: tuple[str, ...] = ()
    needs: Mapping[str, Need] | None = None
    together: bool = False
    tokenizer: tuple[str, str] = ("", "")
    check: Callable[[ConfigDict, Weights, ConfigDict | None], None] = lambda *known: None
    carry: Callable[[ConfigDict, Path], None] = lambda config, folder: None
    refuse: Callable[[Weights], None] = lambda weights: None
    check_run: Callable[[ConfigDict], None] = lambda config: None
    write_told: Callable[[ConfigDict, Mapping[str, np.ndarray]], dict[str, Any]] = lambda *known: {}
    beside: Beside | None = None
    folder: FolderFormat | None = None

    def field(self, name: str) -> str:
        """The config's name of a network's field."""
        return f"model.{name}" if name == "codebook_size" else f"{self.block}.{name}"

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether a run is of this family; fields that older configs lack count as their first."""
        return all(value_of(config, field) in (value, None) for field, value in self.runs.items())


def value_of(config: Mapping[str, Any], field: str) -> Any:
    """A config's field by its dotted name; None where there is no such."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if value is not None else None
    return value


def article(family: str) -> str:
    """The family's name in a sentence."""
    return f"{'an' if family[0] in 'aeiou' else 'a'} {family}"


def config_file(weights: Weights) -> Path | None:
    """The config.json beside a diffusers model's weights, if there is one."""
    file = weights.files[0].parent / weights_file.CONFIG
    return file if file.is_file() else None
