"ONNX and torch.export: the same answers elsewhere."
import copy, os, subprocess, sys
from dataclasses import dataclass
from pathlib import Path
import pytest, torch, torch.nn as nn
from udfc_nb import RECIPES, compress, load
from udfc_nb.recipes.ranges import input_range
from udfc_nb.app.cli import main
from udfc_nb.data.digits import digits_net
from udfc_nb.errors import ExampleInputError, FileError, UnsupportedError
from udfc_nb.files.export import export_onnx, export_program, kernels, onnx_info
from udfc_nb.files.measure import bench, session
from udfc_nb.data.networks import load_network, test_images
from nets import Chain, Perceptron, Residual, roughen
from test_checkpoint import Kinds

onnx = pytest.importorskip('onnx'); pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
images = torch.randn(5, 3, 12, 12)


@dataclass
class Grid: scale:float; zero_point:int; bits:int; signed:bool

class _Reads:
    def forward(self, x):
        g = self.input_quantizer; low = -2**(g.bits-1) if g.signed else 0
        return super().forward(g.scale*((torch.round(x/g.scale)+g.zero_point).clamp(low, low+2**g.bits-1)-g.zero_point))
class ReadsConv(_Reads, nn.Conv2d): stock = nn.Conv2d
class ReadsLinear(_Reads, nn.Linear): stock = nn.Linear

@torch.no_grad()
def read_through_grids_(net, x, bits=8, offset=0):
    "Every convolution and linear layer reads its input through a grid; its range is the one on x."
    ends, hooks = {}, []
    for n, m in net.named_modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            hooks.append(m.register_forward_pre_hook(lambda m, i,
                n=n: ends.__setitem__(n, (i[0].min().item(), i[0].max().item()))))
    net(x)
    for h in hooks: h.remove()
    for n, (low, high) in ends.items():
        m, signed = net.get_submodule(n), low < 0
        m.__class__ = ReadsConv if isinstance(m, nn.Conv2d) else ReadsLinear
        scale = torch.tensor(max(high, -low)/(2**(bits-signed)-1)).item()
        m.input_quantizer = Grid(scale, offset if signed else 0, bits, signed)
    return net

def run(net, x):
    with torch.no_grad(): return net(x)

def onnx_run(path, x):
    s = session(path)
    return torch.from_numpy(s.run(None, {s.get_inputs()[0].name: x.numpy()})[0])

def containers(path): return {n: l['container'] for n, l in onnx_info(path)['layers'].items()}

NETS = dict(chain=lambda: (roughen(Chain((3, 8, 10))), images), residual=lambda: (roughen(Residual(8, (10,))), images),
    bare=lambda: (Residual(8, (10,), norm=False).eval(), images),
    perceptron=lambda: (Perceptron().eval(), torch.randn(5, 6)),
    silu=lambda: (roughen(Chain((3, 8, 10), act=nn.SiLU)), images), kinds=lambda: (roughen(Kinds()), images))

@pytest.mark.parametrize('kind, bits, grid',
    [('chain', 4, 'symmetric'), ('residual', 8, 'symmetric'), ('bare', 3, 'paper'), ('perceptron', 5, 'asymmetric'),
    *(pytest.param(*o, marks=pytest.mark.slow)
    for o in (('silu', 8, 'paper'), ('residual', 4, 'asymmetric'), ('kinds', 4, 'symmetric')))])
def test_weights(kind, bits, grid, tmp_path):
    "The same answers as the network; batches of other sizes; integers in the file."
    net, x = NETS[kind]()
    out = compress(net, x, pruning_ratio=.3, weight_bits=bits, recipe=RECIPES['prune'].but(grid=grid))
    size = out.export(tmp_path/'a.onnx')
    assert size == (tmp_path/'a.onnx').stat().st_size
    for n in (1, 5):
        torch.testing.assert_close(onnx_run(tmp_path/'a.onnx', x[:n]), run(out.model, x[:n]), rtol=1e-4, atol=1e-5)
    expected = {('symmetric', 4): 4, ('symmetric', 8): 8, ('paper', 3): 4, ('asymmetric', 5): 8, ('paper', 8): 16,
        ('asymmetric', 4): 4}[grid, bits]
    assert set(containers(tmp_path/'a.onnx').values()) == {expected}
    told = onnx_info(tmp_path/'a.onnx')
    assert (told['opset'] == 21 and all(s[0] == 'batch' for s in told['inputs'].values())
        and all(l['bits'] == bits for l in told['layers'].values()))
    inits = {i.name: i for i in onnx.load(tmp_path/'a.onnx').graph.initializer}
    kinds = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8, 16: onnx.TensorProto.INT16}
    for n, q in out.codes.items():
        i = inits[f'{n}.weight_codes']
        assert i.data_type == kinds[expected] and len(i.raw_data) == -(-q.codes.numel()*expected//8)
        assert inits[f'{n}.weight_scale'].dims[0] == len(q.codes) and f'{n}.weight' not in inits

def test_float_form(tmp_path):
    net, x = NETS['residual']()
    out = compress(net, x, pruning_ratio=.3, weight_bits=4, recipe='prune')
    out.export(tmp_path/'a.onnx', form='float')
    torch.testing.assert_close(onnx_run(tmp_path/'a.onnx', x), run(out.model, x), rtol=1e-4, atol=1e-5)
    assert set(containers(tmp_path/'a.onnx').values()) == {32}
    assert not {n.op_type for n in onnx.load(tmp_path/'a.onnx').graph.node} & {'QuantizeLinear', 'DequantizeLinear'}

@pytest.mark.parametrize('bits, offset, fast',
    [pytest.param(8, 0, True, marks=pytest.mark.slow), (8, -7, False),
    pytest.param(8, -7, True, marks=pytest.mark.slow), (5, 2, True)])
def test_input_grids(bits, offset, fast, tmp_path):
    "Rounded like the simulation, saturating at the ends of the grid."
    net, x = NETS['chain']()
    out = compress(net, x, weight_bits=8, recipe=RECIPES['prune'].but(grid='symmetric'))
    net = read_through_grids_(copy.deepcopy(out.model), x, bits, offset)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    export_onnx(net, tmp_path/'a.onnx', x, out.codes, integer_outputs=fast)
    assert type(net.head) is ReadsLinear and all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    for y in (x, 3*x): # beyond the range as well
        a, b = onnx_run(tmp_path/'a.onnx', y), run(net, y)
        step = net.head.input_quantizer.scale*net.head.weight.abs().sum(1).max().item()
        assert (a-b).abs().max() < 1.5*step and (a-b).abs().mean() < .15*step # a tie may fall to the other side
    kinds = [n.op_type for n in onnx.load(tmp_path/'a.onnx').graph.node]
    assert kinds.count('QuantizeLinear') == (4 if bits == 8 and fast else 3) and ('Clip' in kinds) == (bits < 8)
    ran = kernels(tmp_path/'a.onnx')
    # the mean reads floats
    if bits == 8: assert ran['QLinearConv'] == 1+fast and bool({'Conv', 'FusedConv'} & set(ran)) != fast

@pytest.mark.parametrize('bits', [4, 8])
def test_both_forms(bits, tmp_path):
    """The faithful form does what the simulation does; the fast one stays in integers through residual sums, and
    rounds there."""
    net = digits_net()
    x = torch.rand(64, 1, 8, 8)*2-.5
    out = compress(net, x[:1], pruning_ratio=.3, weight_bits=bits, activation_bits=8, input_range=(-.5, 1.5),
        recipe=RECIPES['prune'].but(grid='symmetric'))
    out.export(tmp_path/'a.onnx'); out.export(tmp_path/'b.onnx', integer_outputs=True)
    want = run(out.model, x)
    error = {f: ((onnx_run(tmp_path/f'{f}.onnx', x)-want).abs().mean()/want.abs().mean()).item() for f in 'ab'}
    assert error['a'] < .002 and error['a'] < error['b'] < .05, error
    ran = {f: kernels(tmp_path/f'{f}.onnx') for f in 'ab'}
    assert ran['b']['QLinearConv'] == 15 and ran['b']['QLinearAdd'] >= 5 and not {'Conv', 'FusedConv'} & set(ran['b'])
    assert ran['a']['QLinearConv'] == 6 and 'QLinearAdd' not in ran['a'], (
        'a convolution that another one reads is computed in integers')
    for f in 'ab': assert set(containers(tmp_path/f'{f}.onnx').values()) == {8}, 'integer kernels read 8 bits'

def test_reduced_range(tmp_path):
    net, x = NETS['chain']()
    out = compress(net, x, weight_bits=8, recipe=RECIPES['prune'].but(grid='symmetric'))
    out.export(tmp_path/'a.onnx', reduce_range=True)
    inits = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path/'a.onnx').graph.initializer}
    codes = [v for n, v in inits.items() if n.endswith('weight_codes')]
    assert len(codes) == 3 and all(abs(c.astype(int)).max() <= 63 for c in codes)
    assert (onnx_run(tmp_path/'a.onnx', x)-run(out.model, x)).abs().max() < .05*run(out.model, x).abs().max()

def test_dead_channel_with_a_bias(tmp_path):
    "A batch norm with γ = 0 leaves a constant, whose integer form needs room."
    net, x = NETS['chain']()
    with torch.no_grad():
        net.features[1].weight[0] = 0.
        net.features[1].weight[1] = 1e-9
        net.features[1].bias[:2] = torch.tensor([3., 2.])
    out = compress(net, x, weight_bits=8, recipe=RECIPES['prune'].but(grid='symmetric'))
    net = read_through_grids_(copy.deepcopy(out.model), x)
    export_onnx(net, tmp_path/'a.onnx', x, out.codes)
    a, b = onnx_run(tmp_path/'a.onnx', x), run(net, x)
    assert (a-b).abs().max() < .03*b.abs().max()

def test_missing_extra(monkeypatch, tmp_path):
    net, x = NETS['perceptron']()
    for name in ('onnx', 'onnxscript'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, name, None)
            with pytest.raises(UnsupportedError, match=r'pip install udfc_nb\[onnx\]'):
                export_onnx(net, tmp_path/'a.onnx', x)
    assert list(tmp_path.iterdir()) == []

def test_import_without_the_extra():
    "The package itself needs nothing of it."
    code = ("import sys\nfor n in ('onnx', 'onnxscript', 'onnxruntime'): sys.modules[n] = None\nimport udfc_nb, "
        "udfc_nb.app.making, udfc_nb.app.trying, udfc_nb.files.measure")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    assert done.returncode == 0, done.stderr

def test_refusals(tmp_path):
    net, x = NETS['perceptron']()
    out = compress(net, x, weight_bits=4, recipe='prune')
    for path, kw, error in (('a.tflite', {}, FileError), ('a.onnx', dict(form='half'), UnsupportedError),
            ('a.onnx', dict(example_inputs={'x': 'y'}), ExampleInputError)):
        with pytest.raises(error): out.export(tmp_path/path, **kw)
    class ByValue(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.Linear(3, 3)
        def forward(self, x): return self.a(x) if float(x.sum()) > 0 else x
    for write in (export_onnx, export_program):
        with pytest.raises(UnsupportedError): write(ByValue().eval(), tmp_path/'a', torch.ones(1, 3))
    (tmp_path/'text.onnx').write_text('no')
    with pytest.raises(FileError): onnx_info(tmp_path/'text.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['text.onnx']


# ---- pt2

@pytest.mark.parametrize('kind, bits, grid',
    [('residual', 4, 'paper'), ('perceptron', 8, 'symmetric'), ('chain', 12, 'asymmetric')])
def test_program(kind, bits, grid, tmp_path):
    net, x = NETS[kind]()
    out = compress(net, x, pruning_ratio=.3, weight_bits=bits, recipe=RECIPES['prune'].but(grid=grid))
    before = copy.deepcopy(out.model.state_dict())
    out.export(tmp_path/'a.pt2'); out.export(tmp_path/'b.pt2', form='float')
    assert all(torch.equal(t, before[n]) for n, t in out.model.state_dict().items()) and type(out.model) is type(net)
    program = torch.export.load(tmp_path/'a.pt2')
    for n in (1, 5): assert torch.equal(run(program.module(), x[:n]), run(out.model, x[:n]))
    held = {n: t for n, t in program.state_dict.items() if n.endswith('codes')}
    assert (len(held) == len(out.codes)
        and all(t.dtype == (torch.uint8 if bits <= 8 else torch.int32) for t in held.values()))
    assert not any(n.endswith('weight') and n.removesuffix('.weight') in out.codes for n in program.state_dict)

def test_program_of_half(tmp_path):
    net, x = NETS['residual'](); net.half()
    out = compress(net, x, pruning_ratio=.3, weight_bits=4, recipe='prune')
    out.export(tmp_path/'a.pt2')
    assert torch.equal(run(torch.export.load(tmp_path/'a.pt2').module(), x.half()), run(out.model, x.half()))

def test_program_with_input_grids(tmp_path):
    net, x = NETS['chain']()
    out = compress(net, x, weight_bits=8, recipe='prune')
    net = read_through_grids_(copy.deepcopy(out.model), x, 6)
    export_program(net, tmp_path/'a.pt2', x, out.codes)
    assert torch.equal(run(torch.export.load(tmp_path/'a.pt2').module(), x), run(net, x))

def test_program_in_a_fresh_process(tmp_path):
    "Neither this package nor the class of the network can be found there."
    net, x = NETS['residual']()
    out = compress(net, x, pruning_ratio=.3, weight_bits=4, recipe='prune')
    out.export(tmp_path/'a.pt2'); torch.save(x, tmp_path/'x.pt')
    code = ("import sys; sys.modules['udfc_nb'] = sys.modules['nets'] = None\nimport "
        "torch\ntorch.save(torch.export.load('a.pt2').module()(torch.load('x.pt')).detach(), 'y.pt')")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path/'y.pt'), run(out.model, x))


# ---- bench and the command line

def test_bench():
    net, x = NETS['residual']()
    out = compress(net, x, pruning_ratio=.5, weight_bits=8, recipe='prune')
    threads = torch.get_num_threads()
    rows = bench({'before': net, 'after': out}, x, batches=(1, 4), repeats=3, runtimes=('eager',), n_threads=1)
    assert torch.get_num_threads() == threads
    assert [(r['network'], r['batch']) for r in rows] == [('before', 1), ('after', 1), ('before', 4), ('after', 4)]
    assert (rows[0]['speedup'] == 1 and rows[1]['macs'] < rows[0]['macs'] and rows[1]['bytes'] < rows[0]['bytes']
        and rows[0]['effective_bits'] == 32 > rows[1]['effective_bits'])
    assert all(r['throughput'] == pytest.approx(1e3*r['batch']/r['latency_ms']) and r['threads'] == 1 and r['cpu']
        for r in rows)

@pytest.mark.slow
def test_compile_is_a_row_or_a_note():
    net, x = NETS['perceptron']()
    row = bench({'net': net}, x, runtimes=('compile',), repeats=2)[0]
    assert row['note'] or row['latency_ms'] > 0

DIGITS = ['udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8']

def test_commands(tmp_path, capsys):
    small = str(tmp_path/'small.safetensors')
    assert main(['compress', *DIGITS, '--ratio', '.5', '--bits', '4', '--recipe', 'paper', '--output', small,
        '--quiet']) == 0
    capsys.readouterr()
    assert main(['info', small]) == 0
    said = capsys.readouterr().out
    assert 'packed codes' in said and 'recipe paper' in said and f'{Path(small).stat().st_size:,} bytes' in said
    assert main(['export', *DIGITS, '--compressed', small, '--output', str(tmp_path/'a'), '--format', 'pt2']) == 0
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(run(torch.export.load(tmp_path/'a.pt2').module(), x),
        run(load(small, digits_net(pretrained=False)), x))
    assert main(['export', *DIGITS, '--compressed', small, '--output', str(tmp_path/'a.onnx')]) == 0
    assert "opset 21; inputs {'x': ['batch', 1, 8, 8]}" in capsys.readouterr().out
    torch.testing.assert_close(onnx_run(tmp_path/'a.onnx', x), run(load(small, digits_net(pretrained=False)), x),
        rtol=1e-3, atol=1e-3)
    for path, fast in (('b.onnx', []), ('c.onnx', ['--integer-outputs'])):
        assert main(['export', *DIGITS, '--bits', '8', '--activation-bits', '8', '--recipe', 'prune', '--output',
            str(tmp_path/path), *fast]) == 0
    count = lambda path: sum(n.op_type == 'QuantizeLinear' for n in onnx.load(tmp_path/path).graph.node)
    assert count('c.onnx') > count('b.onnx') > 10
    assert main(['bench', *DIGITS, '--compressed', small, '--repeats', '2', '--batch', '2', '--output',
        str(tmp_path/'rows.csv')]) == 0
    assert 'uncompressed' in capsys.readouterr().out and len((tmp_path/'rows.csv').read_text().splitlines()) == 3

@pytest.mark.parametrize('argv, says',
    [(['info', 'absent.safetensors'], 'no such file'), (['export', *DIGITS, '--output', 'a.tflite'], '--output'),
    (['export', *DIGITS, '--output', 'a.onnx', '--format', 'pt2'], '.pt2'),
    (['export', *DIGITS, '--compressed', 'absent.safetensors', '--output', 'a.pt2'], 'no such file'),
    (['bench', *DIGITS, '--output', 'a.txt'], '--output')])
def test_commands_refuse(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert says in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# ---- on real images

@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize('name, bits',
    [('nm56', 8), ('nm56', 4), ('aka56', 8), ('aka20', 4), ('kar14c100', 8), ('lenet', 4)])
def test_real_images(name, bits, data_dir, tmp_path):
    "At most .2 % of the images differ for weights only, 1 % with 8-bit inputs; the fast form keeps the accuracy."
    net, info = load_network(name, data_dir)
    x, y = test_images(name, data_dir, n=1000)
    out = compress(net, x[:1], pruning_ratio=.3, weight_bits=bits)
    out.export(tmp_path/'w.onnx')
    classes = lambda f: torch.cat([f(b).argmax(1) for b in x.split(100)])
    differ = lambda a, b: (a != b).float().mean().item()
    weights = differ(classes(lambda b: onnx_run(tmp_path/'w.onnx', b)), classes(lambda b: run(out.model, b)))
    both = compress(net, x[:1], pruning_ratio=.3, weight_bits=bits, activation_bits=8,
        input_range=input_range(info.mean, info.std))
    both.export(tmp_path/'wa.onnx'); both.export(tmp_path/'fast.onnx', integer_outputs=True)
    ran = kernels(tmp_path/'fast.onnx')
    floats = 3 if name == 'kar14c100' else 0 # sums that several activations and sums read
    assert (ran.get('Conv', 0)+ran.get('FusedConv', 0) == floats
        and ran['QLinearConv'] == sum(isinstance(m, nn.Conv2d) for m in net.modules())-floats)
    simulated, faithful, fast = (classes(lambda b: run(both.model, b)),
        *(classes(lambda b: onnx_run(tmp_path/f, b)) for f in ('wa.onnx', 'fast.onnx')))
    right = lambda c: (c == y).float().mean().item()
    print(f'{name} W{bits}, {len(y)} images: {weights:.2%} differ; A8: simulated {right(simulated):.2%}, faithful '
        f'{right(faithful):.2%} ({differ(faithful, simulated):.2%} differ), fast {right(fast):.2%} '
        f'({differ(fast, simulated):.2%} differ)')
    assert weights <= .002 and differ(faithful, simulated) <= .01 and right(fast) > right(simulated)-.01
