"What is wrong with an argument, a recipe or a command line is told with its name, before anything is computed."
import json, sys
import pytest, torch
from torch import nn
import udfc_nb.errors as E
from udfc_nb import RECIPES, compress
from udfc_nb.recipe import recipe_from_json

x = torch.randn(2, 3, 12, 12)

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

WRONG = [('layer_ratios', ['0'], E.RatioError), ('layer_ratios', .5, E.RatioError), ('layer_ratios', {'1': .5}, E.LayerNameError), ('layer_bits', ['0'], E.BitsError),
    ('layer_bits', {'1': 4}, E.LayerNameError), ('ignored_layers', '24', E.LayerNameError), ('ignored_layers', 2, E.LayerNameError), ('ignored_layers', None, E.LayerNameError),
    ('recipe', ['best'], E.RecipeError), ('recipe', {}, E.RecipeError), ('budget', ['uniform'], E.RecipeError), ('device', 'cudaa', E.ArgumentError), ('device', 'meta', E.ArgumentError),
    ('device', ['cpu'], E.ArgumentError), ('weight_bits', '4', E.BitsError), ('activation_bits', float('nan'), E.BitsError), ('activation_bits', 17, E.BitsError), ('pruning_ratio', '.5', E.RatioError),
    ('input_range', (3, -3), E.ArgumentError), ('input_range', (0, float('inf')), E.ArgumentError), ('input_range', '03', E.ArgumentError), ('verify', 'no', E.ArgumentError),
    ('progress', 'bar', E.ArgumentError), ('more_examples', x, E.ArgumentError), ('seed', 10**30, E.ArgumentError), ('seed', -10**400, E.ArgumentError), ('seed', .5, E.ExampleInputError)]

@pytest.mark.parametrize('name,value,kind', WRONG, ids=[f'{n}={str(v)[:12]}' for n, v, _ in WRONG])
def test_a_wrong_argument_is_named(name, value, kind, monkeypatch):
    monkeypatch.setattr(sys.modules['udfc_nb.compress'], 'WorkingCopy', None) # nothing is begun
    with pytest.raises(kind) as info: compress(small(), **dict(example_inputs=x) | {name: value})
    assert name in str(info.value) and info.value.hint

def test_near_names_are_guessed():
    told = lambda **kw: pytest.raises(E.UDFCError, compress, small(), x, **kw).value.hint
    assert 'did you mean paper?' in told(recipe='papre') and 'did you mean uniform?' in told(budget='uniforn')
    assert "ignored_layers=('24',)" in told(ignored_layers='24')
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 3)); net.same = net[1]
    for names, near in ((('0',), '0.0'), (('same',), '1')):
        e = pytest.raises(E.LayerNameError, compress, net, x, layer_ratios=dict.fromkeys(names, .5)).value
        assert e.layer == names[0] and f'such as {near}' in e.hint

def test_right_arguments_are_still_right():
    out = compress(small(), x, layer_ratios={'0': .5}, layer_bits={'4': None}, weight_bits=4, ignored_layers=['2'], input_range=torch.tensor([-1., 1]), activation_bits=8, device=torch.device('cpu'),
        recipe='paper', more_examples=[torch.randn(1, 3, 9, 9)], seed=-3, verify=0)
    assert out.model[0].out_channels == 4 and set(out.codes) == {'0'}

PARTS = [dict(lam1='0.01'), dict(lam1=None), dict(lam1=[1]), dict(lam1=True), dict(lam1=10**400), dict(lam2='x'), dict(criterion=['l2']), dict(criterion={}), dict(criterion='l3'), dict(budget=None),
    dict(prepare=3), dict(prepare=[['equalise']]), dict(prepare=None), dict(prepare='equalise'), dict(prepare={'equalise': 1}), dict(per_channel='no'), dict(per_channel=None), dict(per_channel=1),
    dict(repair='false'), dict(repair=1), dict(name=None), dict(name=[1])]

@pytest.mark.parametrize('part', PARTS, ids=lambda p: str(p)[1:24])
def test_a_wrong_part_of_a_recipe_is_named(part):
    with pytest.raises(E.RecipeError) as info: recipe_from_json(json.dumps(json.loads(RECIPES['best'].to_json()) | part))
    assert f'{next(iter(part))}=' in str(info.value) and info.value.hint

@pytest.mark.parametrize('text', ['['*100000, '[1]', 'null', '{', '"best"', None, 3])
def test_broken_text_of_a_recipe(text): pytest.raises(E.RecipeError, recipe_from_json, text)

def test_a_recipe_survives_its_text():
    for r in RECIPES.values(): assert recipe_from_json(r.to_json()) == r
    assert recipe_from_json('{"lam1": 0, "repair": true}').lam1 == 0
