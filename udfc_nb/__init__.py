"Compression of trained convolutional networks without data: pruning and quantization in closed form."
__version__ = "0.1.0"

from importlib import import_module

# name → the module in which it is defined; loaded when first used, so that the command need not wait for PyTorch
_WHERE = dict(compress='run.compress', refine='training.refine', Compressed='run.result', load='files.checkpoint',
    Recipe='recipes.recipe', RECIPES='recipes.recipe', find_sites='graph.proof', UDFCError='errors')
__all__ = list(_WHERE)

def __getattr__(name):
    if name not in _WHERE: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f'{__name__}.{_WHERE[name]}'), name)
    return value

def __dir__(): return sorted({*globals(), *__all__})
