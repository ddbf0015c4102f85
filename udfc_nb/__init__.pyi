# What a type checker sees of the package: the public face, with the methods that notebooks add to classes within a module.
# tests/test_project.py compares it with the package itself.
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any
import torch
from torch import nn
from .run.result import Compressed as _Compressed
from .errors import UDFCError as UDFCError
from .graph.sites import Graph as _Graph, Site
from .recipes.recipe import Recipe as Recipe
from .run.report import Report as _Report

__version__: str
__all__ = ['compress', 'refine', 'Compressed', 'load', 'Recipe', 'RECIPES', 'find_sites', 'UDFCError']

RECIPES: dict[str, Recipe]
Path = str | PathLike[str]
Progress = bool | Callable[[int, int, str], object] | None

class Report(_Report):
    def summary(self) -> str: ...
    def verdict(self) -> str: ...
    def cells(self) -> list[tuple[str, ...]]: ...
    def to_markdown(self) -> str: ...
    def to_csv(self) -> str: ...
    def compare(self, other: _Report) -> list[tuple[str, Any, Any]]: ...

class Compressed(_Compressed):
    report: Report # pyright: ignore[reportIncompatibleVariableOverride]
    def save(self, path: Path, dtype: torch.dtype = ..., entropy: bool = False) -> int: ...
    def export(self, path: Path, example_inputs: Any = None, form: str = 'quantized', **kw: Any) -> int: ...

class Refined(Compressed):
    curve: list[Any]
    made: dict[str, Any]
    def figure(self) -> Any: ...

class Graph(_Graph):
    def site(self, name: str) -> Site | None: ...
    def removed(self, kept: dict[str, Any]) -> Any: ...

def compress(
    model: nn.Module, example_inputs: Any, *, pruning_ratio: float = 0., weight_bits: float | None = None, activation_bits: int | None = None,
    recipe: str | Recipe = 'best', budget: str | Mapping[str, float] | None = None, size_budget: float | None = None, ignored_layers: Sequence[str] = (),
    layer_ratios: Mapping[str, float] | None = None, layer_bits: Mapping[str, int | None] | None = None, input_range: tuple[float, float] | None = None,
    images: Any = None, seed: int = 0, memory: int | str | None = None, sites: str = 'own', verify: bool = True, more_examples: Sequence[Any] = (),
    device: str | int | torch.device | None = None, progress: Progress = None,
) -> Compressed: ...

def refine(
    out: _Compressed, teacher: nn.Module, method: str = 'gdfq', steps: int | None = None, device: str | int | torch.device | None = None,
    seed: int = 0, progress: bool | None = None, checkpoint: Path | None = None, source: Any = None,
) -> Refined: ...

def load(path: Path, model: nn.Module | Callable[[], nn.Module], mapped: bool = False) -> nn.Module: ...

def find_sites(
    model: nn.Module, example_inputs: Any, ignored_layers: Sequence[str] = (), *, sites: str = 'own', verify: bool = True, more_examples: Sequence[Any] = (),
) -> Graph: ...
