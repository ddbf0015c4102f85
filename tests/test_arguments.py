"What is wrong with an argument, a recipe or a command line is told with its name, before anything is computed."
import json, sys
import numpy as np
import pytest, torch
from torch import nn
import udfc_nb.errors as E
from udfc_nb import RECIPES, compress, find_sites
from udfc_nb.app import command, info, making
from udfc_nb.files.tensors import signed
from udfc_nb.app.cli import main
from udfc_nb.app.info import file_text, file_told
from udfc_nb.recipes.recipe import recipe_from_json

x = torch.randn(2, 3, 12, 12)

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

WRONG = [('layer_ratios', ['0'], E.RatioError), ('layer_ratios', .5, E.RatioError),
    ('layer_ratios', {'1': .5}, E.LayerNameError), ('layer_bits', ['0'], E.BitsError),
    ('layer_bits', {'1': 4}, E.LayerNameError), ('ignored_layers', '24', E.LayerNameError),
    ('ignored_layers', 2, E.LayerNameError), ('ignored_layers', None, E.LayerNameError),
    ('recipe', ['best'], E.RecipeError), ('recipe', {}, E.RecipeError), ('budget', ['uniform'], E.RecipeError),
    ('device', 'cudaa', E.ArgumentError), ('device', 'meta', E.ArgumentError),
    ('device', ['cpu'], E.ArgumentError), ('weight_bits', '4', E.BitsError),
    ('activation_bits', float('nan'), E.BitsError), ('activation_bits', 17, E.BitsError),
    ('pruning_ratio', '.5', E.RatioError),
    ('input_range', (3, -3), E.ArgumentError), ('input_range', (0, float('inf')), E.ArgumentError),
    ('input_range', '03', E.ArgumentError), ('verify', 'no', E.ArgumentError),
    ('progress', 'bar', E.ArgumentError), ('more_examples', x, E.ArgumentError),
    ('layer_bits', {'0': '4'}, E.BitsError), ('layer_ratios', {'0': None}, E.RatioError),
    ('layer_ratios', {0: .5}, E.LayerNameError),
    ('seed', 10**30, E.ArgumentError), ('seed', -10**400, E.ArgumentError), ('seed', .5, E.ExampleInputError),
    ('sites', 'alll', E.ArgumentError), ('sites', None, E.ArgumentError), ('size_budget', '1MB', E.BudgetError),
    ('size_budget', -1, E.BudgetError), ('weight_bits', 1.5, E.BitsError), ('weight_bits', 8.5, E.BitsError),
    ('layer_bits', {'0': 3.5}, E.BitsError),
    ('example_inputs', torch.full((1, 3, 12, 12), float('nan')), E.ExampleInputError),
    ('example_inputs', 'image', E.ExampleInputError),
    ('more_examples', (torch.full((1, 3, 12, 12), float('nan')),), E.ExampleInputError),
    ('images', torch.randn(12, 12), E.ExampleInputError), ('images', torch.randn(9, 1, 12, 12), E.ExampleInputError),
    ('images', torch.zeros(9, 3, 12, 12, dtype=torch.uint8), E.ExampleInputError),
    ('images', torch.randn(2, 3, 12, 12), E.ExampleInputError), ('layer_ratios', {'0': float('nan')}, E.RatioError)]

@pytest.mark.parametrize('name,value,kind', WRONG, ids=[f'{n}={str(v)[:12]}' for n, v, _ in WRONG])
def test_a_wrong_argument_is_named(name, value, kind, monkeypatch):
    monkeypatch.setattr(sys.modules['udfc_nb.run.compress'], 'WorkingCopy', None) # nothing is begun
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

@pytest.mark.parametrize('names', ['24', 2, None, (2,)])
def test_find_sites_takes_names(names):
    with pytest.raises(E.LayerNameError, match='ignored_layers') as info: find_sites(small(), x, names)
    assert info.value.hint
    assert find_sites(small(), x, iter(['2'])).reasons['2'] == 'ignored by the caller'

def test_one_bit_is_refused_where_the_grid_has_none():
    for kw in (dict(weight_bits=1), dict(layer_bits={'2': 1})):
        with pytest.raises(E.BitsError, match=next(iter(kw))) as info:
            compress(small(), x, recipe=RECIPES['prune'].but(grid='symmetric'), **kw)
        assert info.value.hint

def test_numbers_of_numpy_are_numbers():
    out = compress(small(), x, pruning_ratio=np.float32(.5), weight_bits=np.int64(4), layer_bits={'4': np.int8(6)},
        seed=np.int64(3), recipe='prune')
    assert (out.model[0].out_channels == 4 and out.codes['4'].bits == 6
        and json.loads(out.report.to_json())['settings']['weight_bits'] == 4)

def test_right_arguments_are_still_right():
    out = compress(small(), x, layer_ratios={'0': .5}, layer_bits={'4': None}, weight_bits=4, ignored_layers=['2'],
        input_range=torch.tensor([-1., 1]), activation_bits=8, device=torch.device('cpu'),
        recipe='paper', more_examples=[torch.randn(1, 3, 9, 9)], seed=-3, verify=0)
    assert out.model[0].out_channels == 4 and set(out.codes) == {'0'}

PARTS = [dict(lam1='0.01'), dict(lam1=None), dict(lam1=[1]), dict(lam1=True), dict(lam1=10**400), dict(lam2='x'),
    dict(criterion=['l2']), dict(criterion={}), dict(criterion='l3'), dict(budget=None),
    dict(prepare=3), dict(prepare=[['equalise']]), dict(prepare=None), dict(prepare='equalise'),
    dict(prepare={'equalise': 1}), dict(per_channel='no'), dict(per_channel=None), dict(per_channel=1),
    dict(repair='false'), dict(repair=1), dict(name=None), dict(name=[1])]

@pytest.mark.parametrize('part', PARTS, ids=lambda p: str(p)[1:24])
def test_a_wrong_part_of_a_recipe_is_named(part):
    with pytest.raises(E.RecipeError) as info:
        recipe_from_json(json.dumps(json.loads(RECIPES['best'].to_json()) | part))
    assert f'{next(iter(part))}=' in str(info.value) and info.value.hint

@pytest.mark.parametrize('text', ['['*100000, '[1]', 'null', '{', '"best"', None, 3])
def test_broken_text_of_a_recipe(text): pytest.raises(E.RecipeError, recipe_from_json, text)

def test_a_recipe_survives_its_text():
    for r in RECIPES.values(): assert recipe_from_json(r.to_json()) == r
    assert recipe_from_json('{"lam1": 0, "repair": true}').lam1 == 0


# The command

@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    "What `udfc` says when it refuses: exit code 2, no traceback, nothing that steers a terminal."
    monkeypatch.chdir(tmp_path); monkeypatch.setitem(sys.modules, 'here', sys.modules[__name__])
    def run(command, *argv, code=2, net=NET):
        try: found = main([command, *net, *map(str, argv)])
        except SystemExit as e: found = e.code
        said = capsys.readouterr().err
        assert (found == code and 'Traceback' not in said and len(said.splitlines()) == 1 and said.startswith('udfc')
            and '\x1b' not in said)
        return said
    return run

NET = ['here:small', '--input-shape', '1,3,12,12']
BIG, LONG = '9'*30, 'a'*240

@pytest.mark.parametrize('line,says',
    [('compress --bits nan', 'nan'), ('compress --bits inf', 'inf'), ('compress --bits=-inf', 'inf'),
    ('compress --layer-bits 0=nan', 'nan'), ('compress --layer-bits 1=4', 'ReLU'),
    ('compress --layer-ratio 0=nan', 'nan'), ('compress --size-budget nan', 'size_budget'),
    (f'compress --seed {BIG}', '--seed'), (f'bench --threads {BIG}', '--threads'),
    ('bench --threads 100000', '--threads'),
    (f'bench --repeats {BIG}', '--repeats'), ('eval --imagenet . --workers -1', '--workers'),
    (f'refine --output y.safetensors --steps {BIG}', '--steps'),
    (f'refine --output y.safetensors --seed {BIG}', '--seed'),
    (f'compress --output {LONG}{LONG}.safetensors', 'too long'), (f'compress --report {LONG}{LONG}.md', 'too long'),
    ('compress --device cuda:99', '--device cuda:99'),
    ('refine --output y.safetensors --checkpoint none/ck', '--checkpoint'),
    (f'refine --output y.safetensors --checkpoint {LONG}{LONG}', '--checkpoint'),
    ('refine --output y.safetensors --checkpoint /dev/null', '--checkpoint'),
    ('refine --output none/y.safetensors', '--output')])
def test_options_that_nothing_can_be_done_with(line, says, refused): assert says in refused(*line.split())

@pytest.mark.parametrize('shape,says',
    [('1,3,9999999,9999999', '--input-shape'), (f'{BIG},3,2,2', '--input-shape'), ('1,3,1,1', 'Kernel size')])
def test_shapes_that_cannot_be(shape, says, refused):
    assert says in refused('info', net=['here:small', '--input-shape', shape])

def test_classes_that_cannot_be(refused):
    for n in (0, -1, BIG): refused('info', '--num-classes', n, net=['resnet18'])

def test_too_small_a_machine_is_no_fault(monkeypatch, refused):
    def full(*args, **kwargs): raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(info, 'info_rows', full)
    assert "can't allocate" in (said := refused('info', code=1)) and 'fault of udfc_nb' not in said
    monkeypatch.setattr(torch, 'zeros', full)
    assert '--input-shape' in refused('info')

def test_eval_needs_images(refused):
    assert 'four axes' in refused('eval', '--imagenet', '.', net=['here:small', '--input-shape', '3'])

@pytest.mark.parametrize('text,says',
    [('['*100000, 'not JSON'), ('[1]', 'not an object'), ('{"lam1": "x"}', 'lam1'), ('{"prepare": 3}', 'prepare'),
    ('{"name": "\\u001b[2J", "lam1": -1}', 'lam1')])
def test_recipes_in_files(text, says, refused, tmp_path):
    (tmp_path/'r.json').write_text(text)
    assert says in refused('compress', '--recipe', 'r.json')

def state(change=lambda v: v, name=lambda k: k): return {name(k): change(v) for k, v in small().state_dict().items()}
def itself(): d = {}; d['model'] = d; return d

@pytest.mark.parametrize('made,says',
    [(lambda: state(torch.Tensor.to_sparse), 'sparse'), (lambda: state(lambda v: v.to('meta')), 'meta'),
    (lambda: state(lambda v: v.to(torch.complex64)), 'complex64'),
    (itself, 'no weights'), (lambda: state(name=lambda k: f'\x1b[2J{k}'), '\\x1b[2J0.bias')])
def test_weights_that_are_no_numbers(made, says, refused, tmp_path):
    torch.save(made(), tmp_path/'w.pt')
    assert says in refused('info', '--weights', 'w.pt')

def packed(path, tensors, **texts):
    "A file with a valid checksum."
    path.write_bytes(signed(tensors,
        dict(format='udfc_nb', version='2', written_by='x', recipe='{}', header='{}') | texts))

@pytest.mark.parametrize('recipe', ['[1]', 'null', '3', '{', '['*100000])
def test_a_file_whose_recipe_is_broken(recipe, refused, tmp_path):
    packed(tmp_path/'in.safetensors', {'a': torch.zeros(2)}, recipe=recipe)
    assert 'in.safetensors' in refused('info', net=['in.safetensors'])

def test_names_in_a_file_do_not_steer_the_terminal(tmp_path):
    packed(tmp_path/'in.safetensors', {'\x1b]0;x\x07\x1b[2J\u202e\ntotal': torch.zeros(2)}, written_by='\x1b[31m\nred',
        recipe='{"name": "\\u001b[2J\\r"}')
    text = file_text(file_told(tmp_path/'in.safetensors'))
    assert (len(text.splitlines()) == 5 and all(c.isprintable() for line in text.split('\n') for c in line)
        and r'\x1b[31m\nred' in text)

def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'here', sys.modules[__name__])
    for argv in (['--debug', 'info', *NET, '--ignore', 'no'], ['info', *NET, '--ignore', 'no', '--debug']):
        assert (main(argv) == 2 and 'Traceback' in (said := capsys.readouterr().err)
            and 'udfc info: no' in said.splitlines()[-1])

def test_a_fault_of_the_package_is_no_bad_input(monkeypatch, refused):
    def broken(*args): raise KeyError('a fault\nof ours')
    monkeypatch.setattr(info, 'info_rows', broken)
    assert ('a fault of udfc_nb' in (said := refused('info', code=1)) and 'test_arguments.py' in said
        and len(said.splitlines()) == 1)

def test_exit_codes():
    "2 for what the user did wrong, 1 for what failed, 130 for an interrupt."
    def caused(e, by): e.__cause__ = by; return e
    wrong = (E.RatioError('x'), E.FileError('x'), caused(E.FileError('x'), FileNotFoundError()),
        caused(E.FileError('x'), PermissionError()), caused(command.CommandError('x'), OSError(36, 'too long')),
        FileNotFoundError('x'))
    failed = (E.OutOfMemoryError('x'), MemoryError(), RuntimeError("can't allocate memory"), KeyError('x'),
        OSError(28, 'No space left'), caused(E.FileError('x'), OSError(28, 'No space left')),
        caused(command.CommandError('x'), OSError('no network')))
    assert ([command.exit_code(e) for e in wrong] == [2]*len(wrong)
        and [command.exit_code(e) for e in failed] == [1]*len(failed) and command.exit_code(KeyboardInterrupt()) == 130)

def test_an_interrupt_ends_the_command(monkeypatch, refused):
    def pressed(*args): raise KeyboardInterrupt
    monkeypatch.setattr(info, 'info_rows', pressed)
    assert refused('info', code=130) == 'udfc info: interrupted\n'

@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    "What `udfc --json` says: one JSON document on the standard output."
    monkeypatch.chdir(tmp_path); monkeypatch.setitem(sys.modules, 'here', sys.modules[__name__])
    def run(command, *argv, code=0, net=NET):
        assert main([command, *net, *argv, '--json']) == code
        return json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    return run

def test_json_of_every_command(told, monkeypatch, tmp_path):
    found = told('compress', '--ratio', '.5', '--bits', '4', '--recipe', 'prune', '--output', 'a.safetensors')
    assert (found['bytes'] == (tmp_path/'a.safetensors').stat().st_size
        and found['report']['settings']['weight_bits'] == 4)
    found = told('info')
    assert ([r['layer'] for r in found['layers']] == ['0', '2', '4']
        and found['params'] == sum(p.numel() for p in small().parameters()))
    assert set(told('info', '--curves')['curves']) == {'0', '2'}
    found = told('info', net=['a.safetensors'])
    assert (found['recipe']['name'] == 'prune' and found['parts']['file'] == (tmp_path/'a.safetensors').stat().st_size
        and found['format'])
    assert told('export', '--compressed', 'a.safetensors', '--output',
        'a.pt2')['bytes'] == (tmp_path/'a.pt2').stat().st_size
    assert [r['network'] for r in told('bench', '--compressed', 'a.safetensors', '--repeats',
        '1')['rows']] == ['uncompressed', 'compressed']
    monkeypatch.setattr(making, 'refine', lambda out, *args,
        **kw: type('R', (), dict(save=lambda self, path: out.save(path), report=None, curve=[]))())
    assert told('refine', '--compressed', 'a.safetensors', '--output',
        'b.safetensors')['bytes'] == (tmp_path/'b.safetensors').stat().st_size
    rows = [dict(method='none', ratio=0., bits=32, accuracy_before=99., accuracy_after=99., parameters=1, macs=1,
        nominal_bytes=4, file_bytes=9)]
    for name, f in (('demo_rows', lambda **kw: rows),
            ('demo_figure', lambda rows: type('F', (),
            dict(savefig=lambda self, to, **kw: None))())): monkeypatch.setattr(f'udfc_nb.app.demo.{name}', f)
    assert told('demo', '--output', str(tmp_path/'demo'), net=[])['rows'] == rows

def test_json_of_errors(told):
    for argv, code, kind, layer in ((('--ratio', '2'), 2, 'RatioError', 'pruning_ratio'),
            (('--ratio', 'half'), 2, 'CommandError', None), (('--ignore', '00'), 2, 'LayerNameError', '00'),
            (('--nothing',), 2, 'CommandError', None)):
        found = told('compress', *argv, code=code)
        assert (found['exit'] == code and found['error']['type'] == kind and found['error']['layer'] == layer
            and found['error']['message'] and found['error']['hint'])
