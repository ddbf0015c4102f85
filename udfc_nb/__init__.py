"Compression of trained convolutional networks without data: pruning and quantization in closed form."
__version__ = "0.1.0"

from udfc_nb.run.compress import compress, Compressed
from udfc_nb.recipes.recipe import Recipe, RECIPES
from udfc_nb.graph.proof import find_sites
from udfc_nb.errors import UDFCError
from udfc_nb.files.checkpoint import load # and Compressed.save
from udfc_nb.training.refine import refine
import udfc_nb.peers.merging, udfc_nb.recipes.best, udfc_nb.recipes.activations, udfc_nb.recipes.flips, udfc_nb.recipes.mixed, udfc_nb.peers.equalisation, udfc_nb.peers.relatives, udfc_nb.files.joint, udfc_nb.run.candidates # register their recipes
import udfc_nb.files.export # Compressed.export; what it needs beside PyTorch is imported when it is called

__all__ = ['compress', 'refine', 'Compressed', 'load', 'Recipe', 'RECIPES', 'find_sites', 'UDFCError']
