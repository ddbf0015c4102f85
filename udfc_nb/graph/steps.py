# %%
#| export
from dataclasses import dataclass
import numpy as np
import torch, torch.nn as nn
from .record import Node
from .sites import Graph, Site, _use

# %%
#| export
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

def is_norm(
    m:nn.Module,
)->bool:
    "Does the module hold running statistics, and the ε that goes with them?"
    return hasattr(m, 'eps') and all(isinstance(getattr(m, k, None), torch.Tensor) for k in ('running_mean', 'running_var'))

def norm_name(
    node:Node, # of kind 'norm'
)->str: # None if the statistics are no module's own
    "The module whose statistics a norm uses."
    if node.op == 'add': return node.target # written out
    held = node.args[3]
    return held.target.rpartition('.')[0] if isinstance(held, Node) and held.op == 'parameter' else None

# %%
#| export
@dataclass(frozen=True)
class Step:
    "One thing that happens to a site's channels between a layer and a reader."
    kind:str # 'norm', 'depthwise', 'act', 'spatial', 'slopes', 'scale', 'shift', 'gate' or 'sum'
    node:Node # the operation
    module:str = None # norms and depthwise convolutions: the name of the module
    index:tuple = () # where the site's channels stand among the operation's
    other:'Path' = None # kinds 'gate' and 'sum': the way of the other tensor
    fixed:Node = None # kinds 'slopes', 'scale' and 'shift': what the parameter comes from

@dataclass(frozen=True)
class Path:
    "From a layer to a tensor: what a site's channels are made of."
    layer:str # name
    rows:tuple # of the layer, one for each channel
    steps:tuple = () # of `Step`s, front to back

# %%
#| export
def place_of(
    graph:Graph,
    site:Site,
    labels:np.ndarray, # of a tensor's channels
)->tuple: # the position of each channel of the site; None where they are not each at one place
    "Where a site's channels stand."
    use = _use(site, '', '', labels, graph.classes) if labels is not None else None
    if use is None or use.coarse or len(use.channels) < site.size: return None
    return tuple(use.index[:, 0].tolist())

def _carrier(graph, site, node):
    "The input from which an operation has a site's channels."
    mine = set(site.classes)
    found = [n for n in node.sources if n.channels is not None and mine & set(graph.classes.of[n.channels])]
    return max(found, key=lambda n: np.prod(n.shape)) if found else None, found

# %%
#| export
SPATIAL = ('spatial', 'reduce', 'slice', 'pad')
PASSED = ('same', 'permute', 'cat', 'split')

def path_of(
    graph:Graph,
    site:Site,
    node:Node, # a tensor that has the site's channels
)->Path: # None where an operation on the way is not known to it
    "How the channels of a site came to a tensor."
    steps = []
    while True:
        at = place_of(graph, site, node.channels)
        if at is None: return None
        if node.kind == 'layer': return Path(node.target, at, tuple(steps[::-1]))
        source, all_ = _carrier(graph, site, node)
        if source is None: return None
        step = _step(graph, site, node, source, all_, at)
        if step is None: return None
        if step: steps.append(step)
        node = source

def _step(graph, site, node, source, sources, at):
    "One step; () where nothing happens to a channel, None where it is not known what does."
    kind = node.kind
    if kind in PASSED or kind == 'reshape' and len(node.channels) == len(source.channels): return ()
    if kind in SPATIAL or kind == 'reshape': return Step('spatial', node)
    if kind == 'norm' and norm_name(node) is not None: return Step('norm', node, norm_name(node), at)
    if kind == 'depthwise': return Step('depthwise', node, node.target, at) if len(node.channels) == len(source.channels) else None
    if kind == 'act': return Step('act', node)
    if kind in ('slopes', 'scale', 'shift'):
        fixed = next(n for n in node.inputs if not n.live)
        if kind == 'slopes' and np.prod(fixed.shape) == 1: return Step('act', node)
        return Step(kind, node, None, at, fixed=fixed)
    others = [n for n in sources if n is not source] or [source]
    if kind in ('mul', 'add', 'sub') and len(node.sources) <= 2 and len(others) == 1:
        other = path_of(graph, site, others[0])
        return other and Step('gate' if kind == 'mul' else 'sum', node, other=other)
    return None

# %%
#| export
def source_of(
    node:Node, # a call of a layer
)->Node:
    "What a layer reads."
    return (node.sources or node.inputs)[0] # what left torch and came back depends on no input that was seen

def consumer_paths(
    graph:Graph,
    site:Site,
)->dict: # `Path` → the `Use`s at its end; None → those of which it is not known
    "The readers of a site, by the way to them."
    found = {}
    for u in site.consumers:
        whole = len(u.channels) == site.size and not u.coarse
        found.setdefault(path_of(graph, site, source_of(u.node)) if whole else None, []).append(u)
    return found
