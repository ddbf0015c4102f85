"Compression of trained convolutional networks without data: pruning and quantization in closed form."
__version__ = "0.1.0"

from udfc_nb.compress import compress, Compressed
from udfc_nb.recipe import Recipe, RECIPES
from udfc_nb.graph.proof import find_sites
from udfc_nb.errors import UDFCError
from udfc_nb.checkpoint import load # and Compressed.save
from udfc_nb.refine import refine
import udfc_nb.merging, udfc_nb.best, udfc_nb.activations, udfc_nb.flips, udfc_nb.mixed, udfc_nb.equalisation, udfc_nb.relatives, udfc_nb.joint, udfc_nb.run.candidates # register their recipes
import udfc_nb.export # Compressed.export; what it needs beside PyTorch is imported when it is called

__all__ = ['compress', 'refine', 'Compressed', 'load', 'Recipe', 'RECIPES', 'find_sites', 'UDFCError']
