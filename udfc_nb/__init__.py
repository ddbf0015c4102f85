"Compression of trained convolutional networks without data: pruning and quantization in closed form."
__version__ = "0.1.0"

from udfc_nb.errors import UDFCError
from udfc_nb.graph.proof import find_sites
from udfc_nb.recipes.recipe import Recipe, RECIPES
from udfc_nb.run.result import Compressed
from udfc_nb.run.compress import compress
from udfc_nb.files.checkpoint import load
from udfc_nb.training.refine import refine

__all__ = ['compress', 'refine', 'Compressed', 'load', 'Recipe', 'RECIPES', 'find_sites', 'UDFCError']
