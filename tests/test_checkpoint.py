"Packed files: round trips, damage, failing writes, sizes."
import copy, errno, io, json, math, os, shutil, signal, struct, subprocess, sys, tempfile, zlib
from pathlib import Path
import pytest, torch, torch.nn as nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_flatten
from torchvision.ops import FrozenBatchNorm2d
from udfc_nb import RECIPES, UDFCError, compress, load
from udfc_nb.files.checkpoint import file_rows, itemise, read_codes
from udfc_nb.files.format import read_file
from udfc_nb.files.tensors import MAX_TEXT
from udfc_nb.writing import write_atomic
from udfc_nb.errors import FileError
from udfc_nb.data.networks import network_info
import test_compress as T
from nets import Block, Chain, Perceptron, Residual, roughen
sys.path.insert(0, str(Path(__file__).parents[1]/'fuzz'))
from files import as_version_1, layer, parts, with_header, with_tensors, with_texts
from test_torchvision import FAMILIES, build

images = torch.randn(3, 3, 12, 12)


class Kinds(nn.Module):
    "Depthwise, grouped, transposed, 1×1 and biased convolutions, group norm, concatenation, a flatten."
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.depth, self.group = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 12, 1, groups=2))
        self.up, self.gn, self.last, self.head = (nn.ConvTranspose2d(12, 6, 2), nn.GroupNorm(3, 6),
            nn.Conv2d(14, 4, 3), nn.Linear(4*4, 5))
    def forward(self, x):
        x = torch.relu(self.depth(torch.relu(self.bn(self.a(x)))))
        y = torch.relu(self.gn(self.up(torch.relu(self.group(x)))))[:, :, 1:, 1:]
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(self.last(torch.cat([x, y], 1))), 2).flatten(1))

NETS = dict(chain=lambda: (Chain(), images), no_norm=lambda: (Chain(norm=False), images),
    residual=lambda: (Residual(), images), bare_residual=lambda: (Residual(norm=False), images),
    block=lambda: (Block(3, 7), images), silu=lambda: (Chain(act=nn.SiLU), images),
    biased=lambda: (Chain(bias=True), images), perceptron=lambda: (Perceptron(), torch.randn(5, 6)),
    kinds=lambda: (Kinds(), images))

def run(net, x):
    with torch.no_grad(): return net(x)

def fresh(kind):
    "The architecture alone."
    net = NETS[kind]()[0].eval()
    with torch.no_grad():
        for t in net.state_dict().values(): t.fill_(7)
    return net


# ---- round trips

# the recipes that model activations take longer; two networks of theirs are always tried, the others with --run-slow
ROUND_TRIPS = [pytest.param(r, k, marks=[pytest.mark.slow] if RECIPES[r].metric == 'field'
    and k not in ('residual', 'kinds') else []) for r in RECIPES for k in NETS]

@pytest.mark.parametrize('recipe, kind', ROUND_TRIPS)
def test_round_trip(recipe, kind, tmp_path):
    net, x = NETS[kind](); roughen(net)
    bits, entropy = ((3, False), (4, True), (8, False))[(list(NETS).index(kind)+list(RECIPES).index(recipe)) % 3]
    try: out = compress(net, x, pruning_ratio=.4, weight_bits=bits, recipe=recipe)
    except UDFCError as e: pytest.skip(f'{recipe} refuses this network: {e}')
    assert out.save(tmp_path/'a.safetensors', entropy=entropy) == (tmp_path/'a.safetensors').stat().st_size
    again = load(tmp_path/'a.safetensors', fresh(kind))
    assert torch.equal(run(again, x), run(out.model, x))
    for n, q in read_codes(tmp_path/'a.safetensors').items():
        assert (torch.equal(q.codes, out.codes[n].codes.cpu())
            and torch.equal(q.dequantize(), again.get_submodule(n).weight))
    for (n, t), (m, u) in zip(out.model.state_dict().items(), again.state_dict().items(), strict=True):
        assert n == m and t.dtype == u.dtype and torch.equal(t, u), n
    for a, b in zip(out.model.modules(), again.modules()):
        for k in ('in_channels', 'out_channels', 'groups', 'in_features', 'out_features', 'num_features'):
            assert getattr(a, k, None) == getattr(b, k, None)

# The kinds of network that the tests of tracing bring, with their inputs.
pictures = torch.randn(3, 3, 16, 16)
def after(*layers):
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *(f() for f in layers), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
def volumes(conv, norm):
    return lambda: nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(5))
KINDS = dict(two_inputs=(T.TwoInputs, (pictures, torch.randn(3, 2, 16, 16))),
    dict_in_dict_out=(T.DictInDictOut, ({'image': pictures, 'name': 'x'},)), features=(T.ReturnsFeatures, (pictures,)),
    functions=(T.Functions, (pictures,)),
    methods=(T.Methods, (pictures,)), views=(T.Views, (pictures,)), shared=(T.Shared, (pictures,)),
    learned=(T.Learned, (pictures,)), two_outputs=(T.TwoOutputs, (pictures, torch.randn(3, 1, 16, 16))),
    shuffled=(T.Shuffle, (pictures,)),
    attention=(T.Attention, (pictures,)), unread=(T.Dead, (pictures,)),
    sequences=(lambda: nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)),
    (pictures,)),
    norm_with_activation=(after(lambda: nn.Conv2d(8, 6, 3), lambda: T.NormAct(6, nn.ReLU(), False)), (pictures,)),
    frozen=(after(lambda: nn.Conv2d(8, 6, 3), lambda: FrozenBatchNorm2d(6)), (pictures,)),
    sync=(after(lambda: nn.Conv2d(8, 6, 3), lambda: nn.SyncBatchNorm(6)), (pictures,)),
    layer_norm=(after(lambda: nn.Conv2d(8, 6, 3), lambda: nn.GroupNorm(1, 6)), (pictures,)),
    overridden=(after(lambda: T.Subclassed(8, 6, 3)), (pictures,)),
    prelu=(after(lambda: nn.Conv2d(8, 6, 3), lambda: nn.PReLU(6)), (pictures,)),
    dilated=(after(lambda: nn.Conv2d(8, 6, 3, dilation=2, padding='same', padding_mode='reflect')), (pictures,)),
    transposed=(after(lambda: nn.ConvTranspose2d(8, 6, 2)), (pictures,)),
    depthwise=(after(lambda: nn.Conv2d(8, 16, 3, groups=8), lambda: nn.Conv2d(16, 6, 1)), (pictures,)),
    one_axis=(volumes(nn.Conv1d, nn.BatchNorm1d), (torch.randn(3, 3, 20),)),
    three_axes=(volumes(nn.Conv3d, nn.BatchNorm3d), (torch.randn(3, 3, 6, 6, 6),)),
    parametrised=(after(lambda: weight_norm(nn.Conv2d(8, 6, 3))), (pictures,)))
KIND_TRIPS = [pytest.param(r, k, marks=[] if r in ('paper', 'prune') else [pytest.mark.slow]) for r in RECIPES
    for k in KINDS]

def built(kind):
    make, inputs = KINDS[kind]
    net = make().eval(); run_all(net, inputs) # lazy layers learn their sizes
    return roughen(net)

def run_all(net, inputs):
    "Every tensor that a network gives."
    with torch.no_grad(): return [t for t in tree_flatten(net(*inputs))[0] if isinstance(t, torch.Tensor)]

@pytest.mark.parametrize('recipe, kind', KIND_TRIPS)
def test_round_trip_of_every_kind(recipe, kind, tmp_path):
    "Another network of the architecture, with other numbers, becomes the compressed one; every output bit for bit."
    net, inputs = built(kind), KINDS[kind][1]
    try: out = compress(net, inputs, pruning_ratio=.4, weight_bits=5, recipe=recipe)
    except UDFCError as e: pytest.skip(f'{recipe} refuses this network: {e}')
    want = run_all(out.model, inputs)
    out.save(tmp_path/'a.safetensors', entropy=True)
    got = run_all(load(tmp_path/'a.safetensors', built(kind)), inputs)
    assert len(got) == len(want) > 0 and all(torch.equal(a, b) for a, b in zip(got, want))

@pytest.mark.parametrize('family',
    [pytest.param(f, marks=[] if f == 'squeezenet' else [pytest.mark.slow]) for f in FAMILIES])
def test_round_trip_of_torchvision(family, tmp_path):
    "The smallest network of each family."
    (name, *_), _, size = FAMILIES[family]
    net, x = roughen(build(name)), torch.randn(1, 3, size, size)
    out = compress(net, x, pruning_ratio=.3, weight_bits=4, recipe='prune')
    out.save(tmp_path/'a.safetensors'); want = run(out.model, x); del net
    assert torch.equal(run(load(tmp_path/'a.safetensors', build(name).eval()), x), want)

@pytest.mark.parametrize('bits', [*range(2, 17), 20, 32, None])
def test_every_width(bits, tmp_path):
    net, x = NETS['residual'](); roughen(net)
    out = compress(net, x, pruning_ratio=.3, weight_bits=bits, recipe='prune')
    out.save(tmp_path/'a.safetensors')
    assert torch.equal(run(load(tmp_path/'a.safetensors', lambda: fresh('residual')), x), run(out.model, x))
    if bits and bits <= 16:
        assert itemise(tmp_path/'a.safetensors')['codes'] == sum(math.ceil(q.codes.numel()*bits/8)
            for q in out.codes.values())

@pytest.mark.parametrize('grid', ['paper', 'symmetric', 'asymmetric'])
@pytest.mark.parametrize('per_channel', [True, False])
def test_every_grid(grid, per_channel, tmp_path):
    net, x = NETS['chain'](); roughen(net)
    out = compress(net, x, weight_bits=5, recipe=RECIPES['prune'].but(grid=grid, per_channel=per_channel))
    out.save(tmp_path/'a.safetensors')
    assert torch.equal(run(load(tmp_path/'a.safetensors', fresh('chain')), x), run(out.model, x))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_types(dtype, tmp_path):
    net, x = NETS['residual'](); roughen(net).to(dtype)
    out = compress(net, x.to(dtype), pruning_ratio=.4, weight_bits=4, recipe='prune')
    out.save(tmp_path/'a.safetensors')
    again = load(tmp_path/'a.safetensors', fresh('residual').to(dtype))
    for (n, t), u in zip(out.model.state_dict().items(), again.state_dict().values()):
        assert t.dtype == u.dtype and torch.equal(t, u), n

def test_float16_remainder(tmp_path):
    "The rest rounded to float16, and nothing else."
    net, x = NETS['residual'](); roughen(net)
    out = compress(net, x, pruning_ratio=.4, weight_bits=4, recipe='prune')
    out.save(tmp_path/'a.safetensors', dtype=torch.float16)
    wanted = {n: t if n.removesuffix('.weight') in out.codes or not t.is_floating_point() else t.half().float()
        for n, t in out.model.state_dict().items()}
    for n, t in load(tmp_path/'a.safetensors', fresh('residual')).state_dict().items():
        assert torch.equal(t, wanted[n]), n

def test_input_grids(tmp_path):
    "Layers that read through grids do so again."
    pytest.importorskip('udfc_nb.recipes.activations')
    net, x = NETS['residual'](); roughen(net)
    out = compress(net, x, pruning_ratio=.4, weight_bits=8, activation_bits=6)
    out.save(tmp_path/'a.safetensors')
    again = load(tmp_path/'a.safetensors', fresh('residual'))
    assert torch.equal(run(again, x), run(out.model, x))
    assert {n: m.input_quantizer for n, m in again.named_modules()
        if hasattr(m, 'input_quantizer')} == {n: m.input_quantizer for n, m in out.model.named_modules()
        if hasattr(m, 'input_quantizer')} != {}

def test_changed_weights_are_refused(tmp_path):
    net, x = NETS['chain']()
    out = compress(net.eval(), x, weight_bits=4, recipe='prune')
    with torch.no_grad(): out.model.head.weight.add_(1)
    with pytest.raises(UDFCError, match='head'): out.save(tmp_path/'a.safetensors')
    assert list(tmp_path.iterdir()) == []

def test_in_a_fresh_process(tmp_path):
    "Only the file and the architecture are there."
    net, x = NETS['residual'](); roughen(net)
    out = compress(net, x, pruning_ratio=.4, weight_bits=4, recipe='prune')
    out.save(tmp_path/'small.safetensors'); torch.save(x, tmp_path/'x.pt')
    code = ("import torch; from udfc_nb import load; from nets import Residual; net = load('small.safetensors', "
        "Residual)\n"
            "with torch.no_grad(): torch.save(net(torch.load('x.pt')), 'y.pt')")
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path/'y.pt'), run(out.model, x))

@pytest.mark.parametrize('ratio, megabytes', [(.3, .293), (.4, .253), (.5, .214)])
def test_sizes_of_the_paper(ratio, megabytes, tmp_path):
    "4-bit codes of ResNet-56; every byte of the file is accounted for."
    out = compress(network_info('nm56').build().eval(), torch.zeros(1, 3, 32, 32), pruning_ratio=ratio, weight_bits=4,
        recipe='prune')
    size = out.save(tmp_path/'a.safetensors')
    parts = itemise(tmp_path/'a.safetensors')
    assert abs(parts['codes']/1e6/megabytes-1) < .02
    assert parts['scales'] == 4*sum(len(q.codes) for q in out.codes.values())
    weights = {f'{n}.weight' for n in out.codes}
    assert parts['rest'] == sum(t.numel()*t.element_size() for n, t in out.model.state_dict().items()
        if n not in weights)
    assert parts['codes']+parts['scales']+parts['rest']+parts['description'] == parts['file'] == size < 1.35e6*megabytes


# ---- writing

def test_full_disk(tmp_path, monkeypatch):
    file = tmp_path/'a.safetensors'; file.write_bytes(b'old')
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'): write_atomic(file, b'new')
    assert file.read_bytes() == b'old' and list(tmp_path.iterdir()) == [file]

IN_PROCESS = '''
import os, resource, signal, sys
from udfc_nb.writing import write_atomic
try: {how}
except OSError as e: print(e.errno); sys.exit(3)
'''

def write_in_process(how, folder):
    return subprocess.run([sys.executable, '-c', IN_PROCESS.format(how=how)], cwd=folder, capture_output=True,
        text=True, timeout=300, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))

def test_no_room_for_the_file(tmp_path):
    "The system itself refuses after 10,000 bytes."
    (tmp_path/'a').write_bytes(b'old')
    done = (write_in_process("resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); write_atomic('a', "
        "bytes(10**6))", tmp_path))
    assert (done.returncode, done.stdout.strip()) == (3, str(errno.EFBIG)), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['a'] and (tmp_path/'a').read_bytes() == b'old'

@pytest.mark.parametrize('moment', ['fsync', 'chmod', 'replace'])
def test_killed_process(moment, tmp_path):
    "Killed at any step of a write: the old file, whole."
    (tmp_path/'a').write_bytes(b'old')
    done = (write_in_process(f"os.{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL); write_atomic('a', "
        f"bytes(10**6))", tmp_path))
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path/'a').read_bytes() == b'old'
    write_atomic(tmp_path/'a', b'new') # what a killed process left behind stands in nobody's way
    assert (tmp_path/'a').read_bytes() == b'new'

def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError): write_atomic(tmp_path/'no'/'a', b'new')


# ---- reading what is damaged or hostile

@pytest.fixture(scope='module')
def target():
    "A small network's file as bytes, the architecture, its answer."
    torch.manual_seed(0)
    net, x = roughen(Chain((3, 4, 5))), torch.randn(2, 3, 6, 6)
    out, files = compress(net, x, pruning_ratio=.3, weight_bits=4, recipe='paper'), {}
    # in memory where that can be: ten thousand files
    folder = Path(tempfile.mkdtemp(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None))
    for name, kw in dict(packed={}, half=dict(dtype=torch.float16)).items():
        out.save(folder/name, **kw); files[name] = (folder/name).read_bytes()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d): m.weight.sign_()
    # two codes, so that deflating pays
    few = compress(net, x, weight_bits=8, recipe='prune'); few.save(folder/'deflated', entropy=True)
    files['deflated'] = (folder/'deflated').read_bytes(); files['first'] = as_version_1(folder/'packed')
    assert any(r['stored'] == 'deflated codes' for r in file_rows(folder/'deflated'))
    yield files, Chain((3, 4, 5)).eval(), x, out, folder
    shutil.rmtree(folder)

class Judge:
    "Reads damaged files and counts what came of them."
    def __init__(self, target):
        files, net, self.x, self.out, folder = target
        self.net = lambda: Chain((3, 4, 5)) # quicker than a copy
        self.file, self.state, self.refused, self.same, self.other = (folder/'damaged.safetensors',
            self.out.model.state_dict(), 0, 0, 0)
        self.sizes = {n: t.numel() for n, t in net.state_dict().items()}
    def __call__(self, data, may_differ=False):
        self.file.write_bytes(data)
        try: net = load(self.file, self.net)
        except FileError as e: assert str(self.file) in str(e); self.refused += 1; return
        state = net.state_dict()
        if all(torch.equal(t, self.state[n]) for n, t in state.items()): self.same += 1; return
        assert may_differ, 'a damaged file was read as another network'
        assert all(t.numel() <= self.sizes[n] for n, t in state.items())
        self.other += 1

def peak(reset=False):
    "Largest resident memory of this process, in MB, since it was last reset."
    if reset: Path('/proc/self/clear_refs').write_text('5')
    line = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmHWM'))
    return int(line.split()[1])/1024

@pytest.fixture
def bounded():
    "Fails if the test took more than 200 MB beyond what the process had."
    try: before = peak(reset=True)
    except OSError: yield; return
    yield
    assert peak()-before < 200

RAN = []
def watch(event, args):
    if RAN and event in ('exec', 'compile', 'os.system', 'subprocess.Popen', 'os.exec', 'pickle.find_class'):
        RAN.append((event, str(args)[:200]))
sys.addaudithook(watch) # can never be removed: it does nothing while RAN is empty

@pytest.fixture
def no_code(target):
    "Fails if anything is executed that is not Python already loaded."
    judge = Judge(target)
    # everything that is imported late is imported now
    for data in target[0].values():
        judge(data, may_differ=True)
        judge(data[:-1])
        judge(with_texts(data, header='[', description='['))
    RAN.append('watching')
    try: yield; seen = RAN[1:]
    finally: RAN.clear()
    assert seen == []

@pytest.mark.parametrize('form', ['packed', 'first'])
def test_every_truncation(form, target, bounded, no_code):
    judge, data = Judge(target), target[0][form]
    for n in range(len(data)): judge(data[:n])
    assert judge.refused == len(data)

class Evil:
    def __reduce__(self): return (os.system, ('touch ran-by-the-file',))

def pickled():
    buffer = io.BytesIO(); torch.save({'a': Evil()}, buffer)
    return buffer.getvalue()

def head(**changes): return lambda d: layer(d, 'head', **changes)
def tensor(name, change): return lambda d: with_tensors(d, lambda ts: ts | {name: change(ts[name])})
def grid(d, name='head', **changes):
    told = {name: dict(scale=.5, zero_point=0, bits=8, signed=True) | changes}
    return with_texts(d, inputs=json.dumps(told)) if of_1(d) else with_header(d, lambda h: h | dict(inputs=told))
def of_1(d): return parts(d)[0]['__metadata__']['version'] == '1'
def text(d, told): return with_texts(d, **{'description' if of_1(d) else 'header': told})
def coded(change): return lambda d: with_header(d, lambda h: h | dict(coded=change(h['coded'])))
def zeros(*shape, dtype=torch.uint8): return lambda t: torch.zeros(*shape, dtype=dtype)

HOSTILE = dict(
    other_version=lambda d: with_texts(d, version='3'), no_version=lambda d: with_texts(d, version=''),
    other_format=lambda d: with_texts(d, format='pt'),
    no_description=lambda d: text(d, ''), nested=lambda d: text(d, '['*10**5+']'*10**5),
    nested_table=lambda d: text(d, '{"a":'*10**5+'1'+'}'*10**5),
    long_number=lambda d: text(d, '9'*10**5), list_description=lambda d: text(d, '[]'), null=lambda d: text(d, 'null'),
    much_text=lambda d: text(d, '{"a":['+'[],'*(MAX_TEXT//3)+'[]]}'),
    header_of_exabytes=lambda d: struct.pack('<Q', 2**60)+d[8:], header_negative=lambda d: struct.pack('<q', -1)+d[8:],
    deep_header=lambda d: struct.pack('<Q', 200_000)+b'{"a":'+b'['*199_995+d, json_only=lambda d: b'{}',
    pickle=lambda d: pickled(), zeros=lambda d: bytes(10**6), empty=lambda d: b'',
    huge_shape=head(shape=[2**31, 2**31]), huger_shape=head(shape=[2**31]*8), overflow=head(shape=[2**32, 2**32]),
    many_axes=head(shape=[1]*5000), negative=head(shape=[-5, -5]), empty_shape=head(shape=[]),
    no_rows=head(shape=[0, 5]),
    float_shape=head(shape=[5., 5]), true_shape=head(shape=[True, 5]), text_shape=head(shape='55'),
    no_bits=head(bits=0), negative_bits=head(bits=-4), many_bits=head(bits=64), text_bits=head(bits='4'),
    far=head(low=2**40), nan_zero=head(zero=[float('nan')]), infinite_zero=head(zero=[float('inf')]),
    no_zero=head(zero=[]),
    many_zeros=head(zero=[0.]*10**5), deflated=head(deflated=True), code=head(run='import os'),
    unknown_layer=coded(lambda i: i | {'extra': next(iter(i.values()))}),
    missing_layer=coded(lambda i: {k: v for k, v in i.items() if not k.startswith('head')}),
    list_layer=coded(lambda i: {k: [4] for k in i}),
    codes_of_floats=tensor('head.weight.codes', lambda t: t.float()),
    codes_cut=tensor('head.weight.codes', lambda t: t[:-1]), codes_of_a_gigabyte_promised=head(shape=[2**15, 2**15]),
    scale_nan=tensor('head.weight.scale', lambda t: t*float('nan')),
    scale_infinite=tensor('head.weight.scale', lambda t: t/0),
    scale_many=tensor('head.weight.scale', zeros(77, dtype=torch.float32)),
    scale_none=tensor('head.weight.scale', zeros(0, dtype=torch.float32)),
    scale_integer=tensor('head.weight.scale', lambda t: t.int()),
    bias_long=tensor('head.bias', zeros(6, dtype=torch.float32)), bias_short=tensor('head.bias', lambda t: t[:-1]),
    bias_matrix=tensor('head.bias', lambda t: t[None]),
    bias_none=tensor('head.bias', lambda t: t[:0]), bias_integer=tensor('head.bias', lambda t: t.int()),
    bias_complex=tensor('head.bias', lambda t: t.to(torch.complex64)),
    norm_uneven=tensor('features.1.running_var', lambda t: t[:-1]),
    extra_tensor=lambda d: with_tensors(d, lambda ts: ts | {'x': torch.zeros(2)}),
    weight_twice=lambda d: with_tensors(d, lambda ts: ts | {'head.weight': torch.zeros(5, 4)}),
    grid_of_no_layer=lambda d: grid(d, 'features.1'), grid_nan=lambda d: grid(d, scale=float('nan')),
    grid_of_many_bits=lambda d: grid(d, bits=64), grid_far=lambda d: grid(d, zero_point=2**40),
    grids_listed=lambda d: with_texts(d, inputs='[]') if of_1(d) else with_header(d, lambda h: h | dict(inputs=[])),
    missing_tensor=lambda d: with_tensors(d, lambda ts: {k: v for k, v in ts.items() if k != 'head.bias'}),
    codes_missing=lambda d: with_tensors(d, lambda ts: {k: v for k, v in ts.items() if k != 'head.weight.codes'}))

@pytest.mark.parametrize('form', ['packed', 'first'])
@pytest.mark.parametrize('name', HOSTILE)
def test_hostile(name, form, target, bounded, monkeypatch):
    "Made by hand, each with the checksum that fits."
    judge = Judge(target)
    monkeypatch.chdir(judge.file.parent)
    data = HOSTILE[name](target[0][form])
    judge(data)
    assert judge.refused == 1 and not Path('ran-by-the-file').exists()

def test_bomb(target, bounded):
    "A megabyte that unfolds to a gigabyte of codes is not unfolded."
    judge = Judge(target)
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10**8), 9)), dtype=torch.uint8)
    data = with_tensors(target[0]['packed'], lambda ts: ts | {'head.weight.codes': bomb})
    for shape in ([5, 4], [10**4, 10**4]):
        judge(layer(data, 'head', deflated=True, shape=shape))
    assert judge.refused == 2

def test_what_is_no_file(target, tmp_path):
    net = target[1]
    os.mkfifo(tmp_path/'pipe')
    for path in (tmp_path, tmp_path/'absent', tmp_path/'pipe', '/dev/zero'):
        with pytest.raises(FileError): load(path, net)
        with pytest.raises(FileError): read_file(path)

def test_other_architecture(target, tmp_path):
    (tmp_path/'a').write_bytes(target[0]['packed'])
    for net in (Residual(), Chain((3, 4, 2)), Chain((3, 4, 5), norm=False), Chain((3, 4, 5), classes=4)):
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(FileError, match='architecture'): load(tmp_path/'a', net)
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
