"""Random arguments of `compress`, good ones and bad ones."""
import math
import torch, torch.nn as nn
from udfc_nb.recipes.recipe import BUDGETS, METRICS, RECIPES, REPAIRS, SCALES, Recipe
from udfc_nb.recipes.channels import PROJECTIONS
from udfc_nb.recipes.ranges import RANGES
from udfc_nb.recipes.flips import ROUNDINGS
from udfc_nb.recipes.fit import CRITERIA
from udfc_nb.recipes.rounding import GRIDS

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NAN, INF = math.nan, math.inf
GOOD = dict(pruning_ratio=(0., 0, .1, .3, .5, .7, .9, .999), weight_bits=(None, 1, 2, 3, 4, 6, 8, 16, 32, 3.5, 5.25),
    activation_bits=(None, None, 2, 4, 8, 16), budget=(None, None, 'uniform', 'params', 'macs'),
    input_range=(None, (-1, 1), (0., 255.), [-2, 2]), seed=(0, 1, 2**40, -3), sites=('own', 'all'),
    verify=(True, True, False), device=(None, 'cpu', torch.device('cpu')),
    progress=(None, False, lambda done, total, layer: None), more_examples=((), []))
BAD = dict(pruning_ratio=(-.1, 1, 1.5, NAN, INF, '0.3', None, [.3], 1j, True),
    weight_bits=(0, -1, 33, NAN, INF, '4', True, [4], .5, 1e30),
    activation_bits=(0, 1, 17, 4.5, '8', NAN, True, -2, [8]), budget=('flops', 3, '', ('params',)),
    input_range=((1, -1), (NAN, 1), 3, (1, 2, 3), 'ab', (0, INF), {0, 1}, ()), seed=(1.5, 'a', 2**60, None, NAN),
    sites=('some', 3, None, ['own']), verify=('yes', None, 2.), device=('nope', 'meta', 'cuda:99', 3.5),
    progress=('x', 3.5, []),
    more_examples=(None, 'x', (None,), (3,), torch.randn(2, 3, 8, 6)), recipe=('bset', '', None, 3, ('best',), {}),
    size_budget=(0, -5, NAN, '1k', INF, True), ignored_layers=('body', ('nope',), 3, None, (3,), ('body.0.nope',)),
    layer_ratios=([], 'x', {'nope': .3}, {3: .3}, .3), layer_bits=([], 'x', {'nope': 3}, {None: 4}, 4))

def layers(net): return [n for n, m in net.named_modules() if isinstance(m, LAYERS)]

def _recipe(r):
    if r.random() < .6: return r.choice(sorted(RECIPES))
    pick = lambda known: r.choice(sorted(known))
    metric = pick(METRICS)
    rounding = pick(ROUNDINGS if metric in ('field', 'counted', 'mean', 'judged') else ['nearest'])
    return Recipe(criterion=pick(CRITERIA), budget=pick(BUDGETS), metric=metric, projection=pick(PROJECTIONS),
        grid=pick(GRIDS), rounding=rounding, scale=pick(SCALES), repair=pick(REPAIRS), ranges=pick(RANGES),
        lam1=r.choice([0., .01, 1.]), per_channel=r.random() < .7)

def _good(name, r, net):
    some = lambda: r.sample(layers(net), min(len(layers(net)), r.randint(1, 2)))
    if name == 'recipe': return _recipe(r)
    if name == 'size_budget': return r.choice([2000, 5000, 20000, 10**9, 3000.5])
    if name == 'ignored_layers': return r.choice([(), tuple(some()), some(), ('body',), ('body.0',)])
    if name == 'layer_ratios': return {n: r.choice([0., .2, .6]) for n in some()}
    if name == 'layer_bits': return {n: r.choice([None, 2, 4, 8]) for n in some()}
    return r.choice(GOOD[name])

def draw_arguments(
    r, # `random.Random`
    net:nn.Module,
    bad:float=.3, # how often one of them is bad
)->tuple: # (arguments by name, the name of the bad one or None)
    "Arguments of `compress` beside network and example."
    names = ['recipe', 'pruning_ratio', 'weight_bits',
        *r.sample(['activation_bits', 'budget', 'input_range', 'seed', 'sites', 'verify', 'device', 'progress',
        'more_examples', 'ignored_layers', 'layer_ratios', 'layer_bits', 'size_budget'], r.randint(0, 4))]
    given = {n: _good(n, r, net) for n in names}
    if 'size_budget' in given: given.pop('pruning_ratio'); given.pop('weight_bits')
    wrong = None
    if r.random() < bad:
        wrong = r.choice(sorted(BAD))
        given[wrong] = r.choice(BAD[wrong])
    return given, wrong
