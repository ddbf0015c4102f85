"Files: what is written where, what one reading is, and what a file may not claim."
import json, os, stat, subprocess, sys, time
from pathlib import Path
import pytest, torch, torch.nn as nn
from udfc_nb import compress, load
from udfc_nb.files.tensors import OneReading
from udfc_nb.files.format import read_file
from udfc_nb.files.checkpoint import file_rows, itemise, read_codes
from udfc_nb.writing import write_atomic
from udfc_nb.app.info import file_text, file_told
from udfc_nb.run.result import Compressed
from udfc_nb.errors import FileError, NonFiniteError, UnsupportedError
from safetensors.torch import load as from_bytes
from udfc_nb.files.tensors import NAMES, TYPES, read_tensors, signed
from udfc_nb.writing import check_writable
sys.path.insert(0, str(Path(__file__).parents[1]/'fuzz'))
from files import as_version_1, header_of, join, with_header, with_tensors, with_texts

x = torch.randn(2, 3, 12, 12)

def chain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 4, 3)).eval()

def described(path, coded, **tensors):
    "A file with these tensors in this description."
    path.write_bytes(signed(tensors,
        dict(format='udfc_nb', version='2', written_by='x', recipe='{}', header=json.dumps(dict(coded=coded)))))
    return path

VERSIONS = ('1', '2')

def bytes_of(path, version): return as_version_1(path) if version == '1' else Path(path).read_bytes()


# ---- reading

@pytest.mark.parametrize('harm', ['overwritten', 'cut', 'gone'])
def test_nothing_lies_in_the_file(harm, tmp_path):
    net, p = chain(), tmp_path/'a'
    size = compress(net, x, recipe='fast').save(p)
    again, (tensors, *_), codes = load(p, net), read_file(p), read_codes(p)
    want, held = again(x), {n: t.clone() for n, t in tensors.items()}
    if harm == 'gone': p.unlink()
    elif harm == 'cut': os.truncate(p, 100)
    else:
        with open(p, 'r+b') as f: f.write(b'\x3f'*size)
    assert torch.equal(again(x), want) and all(torch.equal(t, held[n]) for n, t in tensors.items())

def swap_on_open(monkeypatch, path, others):
    "Each opening of `path` gives the next file."
    import builtins
    real, seen = builtins.open, []
    def opened(p, *a, **k):
        if str(p) == str(path):
            seen.append(p)
            Path(str(path)+'.new').write_bytes(others[len(seen) % 2])
            os.replace(str(path)+'.new', path)
        return real(p, *a, **k)
    monkeypatch.setattr(builtins, 'open', opened)
    return seen

def test_one_opening_is_one_file(tmp_path, monkeypatch):
    net, p, files, texts = chain(), tmp_path/'a', [], []
    for bits in (8, 2):
        compress(net, x, weight_bits=bits).save(p)
        files.append(p.read_bytes())
        texts.append(file_text(file_told(p)))
    seen = swap_on_open(monkeypatch, p, files)
    for ask in (lambda: load(p, net), lambda: read_codes(p), lambda: read_file(p), lambda: itemise(p),
            lambda: file_rows(p), lambda: file_text(file_told(p))):
        for _ in range(2): seen.clear(); ask(); assert len(seen) == 1
    for _ in range(4): assert file_text(file_told(p)) in texts
    one = OneReading(p); small = load(one, net)
    for n, q in read_codes(one).items(): assert torch.equal(q.dequantize(), small.get_submodule(n).weight)

def test_lengths_are_not_trusted(tmp_path):
    "Each at once; without codes as well as with many."
    for bits in (1, 8, 16):
        for shape in ([2**31], [2**31]*2, [2**31]*8, [2**31]*7+[0], [64, 2]):
            for deflated in (False, True):
                info = {'a.weight': dict(bits=bits, shape=shape, low=0, deflated=deflated, zero=[0.])}
                p = described(tmp_path/'a', info,
                    **{'a.weight.codes': torch.zeros(8, dtype=torch.uint8), 'a.weight.scale': torch.ones(1)})
                began = time.perf_counter()
                with pytest.raises(FileError, match='codes|description of a.weight'): read_codes(p)
                assert time.perf_counter()-began < 2

def test_the_largest_unfolding_is_read(tmp_path):
    "Nothing that `save` writes is taken for a lie: equal codes are the most that deflate can do."
    net = nn.Sequential(nn.Linear(1024, 1024, bias=False)).eval()
    with torch.no_grad(): net[0].weight.fill_(1.)
    out = compress(net, torch.randn(2, 1024), weight_bits=8, recipe='prune', verify=False)
    out.save(tmp_path/'a', entropy=True)
    assert itemise(tmp_path/'a')['codes'] < 2000
    assert torch.equal(load(tmp_path/'a', net)[0].weight, out.model[0].weight)

def test_time_is_linear(tmp_path):
    took = []
    for n in (500, 2000):
        tensors = {f'{i}.weight.{k}': t for i in range(n)
            for k, t in (('codes', torch.zeros(1, dtype=torch.uint8)), ('scale', torch.ones(1)))}
        p = described(tmp_path/'a', {f'{i}.weight': dict(bits=8, shape=[1, 1], low=0, zero=[0.]) for i in range(n)},
            **tensors)
        def seconds(f): began = time.process_time(); f(p); return time.process_time()-began
        took.append([min(seconds(f) for _ in range(2)) for f in (read_file, itemise, file_rows, read_codes)])
    assert all(b < max(9*a, .2) for a, b in zip(*took)), took

NORM = ('weight', 'bias', 'running_mean', 'running_var')
def rows(t, *names, k=5): return {n: t[n][:k] for n in names}

CONTRADICTIONS = dict(next_layer=lambda t: {'5.bias': t['5.bias']*float('inf')},
    mean=lambda t: {'1.running_mean': t['1.running_mean']*float('nan')},
    variance=lambda t: {'1.running_var': -1-t['1.running_var']},
    steps=lambda t: {'5.weight.scale': torch.full_like(t['5.weight.scale'], 3e38)},
    stray=lambda t: {'9.weight.codes': torch.zeros(4, dtype=torch.uint8)},
    codes_matrix=lambda t: {'5.weight.codes': t['5.weight.codes'][None]},
    norm=lambda t: rows(t, *(f'1.{k}' for k in NORM)), norm_of_one=lambda t: rows(t, *(f'1.{k}' for k in NORM), k=1),
    slopes=lambda t: rows(t, '2.weight'))

@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('name', CONTRADICTIONS)
def test_contradictions(name, version, tmp_path):
    net = chain(); compress(net, x, weight_bits=8, pruning_ratio=.25).save(tmp_path/'a')
    data = bytes_of(tmp_path/'a', version)
    (tmp_path/'b').write_bytes(data); load(tmp_path/'b', net)
    (tmp_path/'b').write_bytes(with_tensors(data, lambda ts: ts | CONTRADICTIONS[name](ts)))
    with pytest.raises(FileError): load(tmp_path/'b', net)

class Neighbours(nn.Module):
    "Layers of every kind, float, each reading the one before."
    def __init__(self, first, second):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 8, 3), first, second, nn.Linear(8, 5)
    def forward(self, x): return self.head(self.c(self.b(self.a(x))).mean((2, 3)))

PAIRS = dict(convolution=lambda: (nn.Conv2d(8, 8, 3), nn.ReLU()),
    transposed=lambda: (nn.ConvTranspose2d(8, 8, 2), nn.ReLU()),
    grouped=lambda: (nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()),
    depthwise=lambda: (nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
    group_norm=lambda: (nn.GroupNorm(2, 8), nn.ReLU()),
    instance=lambda: (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU()),
    slopes=lambda: (nn.PReLU(8), nn.ReLU()))

@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('kind', PAIRS)
def test_a_module_cut_beside_its_neighbours(kind, version, tmp_path):
    "Each module, whole, to fewer rows; and with what the file says of its input gone, or wrong."
    net = Neighbours(*PAIRS[kind]()).eval(); compress(net, x, recipe='prune').save(tmp_path/'a')
    data, p = bytes_of(tmp_path/'a', version), tmp_path/'b'
    p.write_bytes(data); assert torch.equal(load(p, net)(x), net(x))
    for owner in ('a', 'b', 'head'):
        other = with_tensors(data, lambda ts: ts | {n: t[:4] for n, t in ts.items() if n.startswith(f'{owner}.')
            and t.dim()})
        told = ([None] if version == '1'
            else [None, [], [[dict(tensor=[[2, 7], 'float32'])], {}], [[], {}],
            [[dict(tensor=[[1]*9, 'int64'])], dict(x=3)]])
        for example in told:
            p.write_bytes(other if example is None else with_header(other, lambda h: h | dict(example=example)))
            with pytest.raises(FileError): load(p, net)

@pytest.mark.parametrize('wrong',
    [[[dict(tensor=[[2**20]*3, 'float32'])], {}], [[dict(tensor=[[0, 3], 'float32'])], {}],
    [[dict(tensor=[[1], 'float7'])], {}], [[dict(run='x')], {}], [[]], [[dict(tensor=[[1], 'int8'], more=1)], {}],
    [dict(tensor=1), 3]])
def test_an_example_that_is_none(wrong, tmp_path):
    net = chain(); compress(net, x, weight_bits=8).save(tmp_path/'a'); data = (tmp_path/'a').read_bytes()
    (tmp_path/'a').write_bytes(with_header(data, lambda h: h | dict(example=wrong)))
    with pytest.raises(FileError): load(tmp_path/'a', net)

class Silent(nn.Module):
    "Its forward reads values and leaves traces."
    def __init__(self): super().__init__(); self.k, self.calls, self.last = nn.Conv2d(3, 4, 3), [], None
    def forward(self, x): self.calls.append(1); self.last = x; return self.k(x) if x.sum() > -1e9 else x

def test_loading_leaves_no_traces(tmp_path):
    """Where a run without memory is not possible the file is still read; neither the architecture nor the result
    remembers the trial."""
    net = Silent().eval(); out = compress(net, x, weight_bits=8, recipe='fast', verify=False); out.save(tmp_path/'a')
    net.calls, net.last = [], None
    before = {n: t.clone() for n, t in net.state_dict().items()}
    again = load(tmp_path/'a', net)
    assert (net.calls == [] == again.calls and net.last is None and again.last is None
        and all(torch.equal(t, before[n]) for n, t in net.state_dict().items()))
    assert (torch.equal(again(x), out.model(x))
        and not {id(t) for t in again.parameters()} & {id(t) for t in net.parameters()})

def test_what_the_caller_has_set_changes_nothing(tmp_path):
    net = chain(); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a'); want = out.model(x)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.device('meta'), torch.autocast('cpu')):
        with mode: out.save(tmp_path/'b'); again, codes = load(tmp_path/'a', net), read_codes(tmp_path/'a')
        assert (torch.equal(again(x), want)
            and all(p.requires_grad and not p.is_inference() for p in again.parameters())
            and (tmp_path/'b').read_bytes() == (tmp_path/'a').read_bytes())

def test_mapped(tmp_path):
    """Private: what is written into the network stays out of the file; floats lie in it, and are not read before
    they are used."""
    net, p = chain(), tmp_path/'a'; out = compress(net, x, recipe='prune'); out.save(p); data = p.read_bytes()
    again = load(p, net, mapped=True); assert torch.equal(again(x), out.model(x))
    with torch.no_grad():
        for t in again.parameters(): t.zero_()
    assert p.read_bytes() == data and torch.equal(load(p, net)(x), out.model(x))
    one = OneReading(p); a, b = load(one, net), load(one, net)
    with torch.no_grad(): a[0].weight.zero_()
    assert torch.equal(b(x), out.model(x)), 'two networks of one reading share nothing'

PEAK = """
import sys, torch, torch.nn as nn
from pathlib import Path
from udfc_nb import load
from udfc_nb.errors import FileError
torch.set_num_threads(1)
def net(): return nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))
def said():
    lines = [l for l in open('/proc/self/status') if l.startswith(('VmHWM', 'VmRSS'))]
    return {l.split(':')[0]: int(l.split()[1])/1024 for l in lines}
for path in sys.argv[1:]:
    base = said()['VmRSS']; Path('/proc/self/clear_refs').write_text('5')
    try: load(path, net)
    except FileError: pass
    print(said()['VmHWM']-base)
"""

@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK),
    reason='the system does not say how much memory was used')
def test_memory(tmp_path):
    "At most twice the file and twice the network, and a little: floats, codes, deflated codes; damaged, forged."
    net = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)).eval()
    tiny, floats, codes, small, damaged, forged = (tmp_path/n for n in 'tfcsdg')
    out = compress(net, torch.zeros(1, 2048), weight_bits=4, recipe='prune', verify=False)
    # the first: everything is imported then
    Compressed(nn.Linear(4, 4), None).save(tiny)
    Compressed(net, None).save(floats); out.save(codes); out.save(small, entropy=True)
    data = bytearray(codes.read_bytes()); data[-100] ^= 1; damaged.write_bytes(data)
    forged.write_bytes(with_header(codes.read_bytes(),
        lambda h: h | dict(coded=h['coded'] | {'0.weight': h['coded']['0.weight'] | dict(shape=[2**15, 2**15])})))
    files, network = [floats, codes, small, damaged, forged], sum(t.numel()*4 for t in net.parameters())
    done = subprocess.run([sys.executable, '-c', PEAK, tiny, codes, *files], capture_output=True, text=True,
        timeout=600, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    took = [float(line) for line in done.stdout.split()][2:]
    assert len(took) == 5 and all(mb < (2*f.stat().st_size+2*network)/2**20+8 for mb, f in zip(took, files)), (took,
        done.stderr)

# ---- versions

@pytest.mark.parametrize('version, says',
    [('3', "'3'.*reads 1 to 2"), ('2.0', "'2.0'"), ('', "''"), ('0', "'0'"), ('\x1b[2J', 'version')])
def test_versions_that_are_not_known(version, says, tmp_path):
    net = chain(); compress(net, x, weight_bits=8).save(tmp_path/'a')
    (tmp_path/'a').write_bytes(with_texts((tmp_path/'a').read_bytes(), version=version))
    with pytest.raises(FileError, match=says) as e: load(tmp_path/'a', net)
    assert 'update udfc_nb' in str(e.value)

def test_version_1_is_read_as_version_2(tmp_path):
    net = chain()
    out = compress(net, x, weight_bits=5, activation_bits=8, pruning_ratio=.25); out.save(tmp_path/'a', entropy=True)
    (tmp_path/'b').write_bytes(as_version_1(tmp_path/'a'))
    assert torch.equal(load(tmp_path/'b', net)(x), out.model(x))
    a, b = read_file(tmp_path/'a'), read_file(tmp_path/'b')
    assert b[2]['version'] == '1' and a[0].keys() == b[0].keys() and {**a[1], 'example': []} == b[1]
    for other in (dict(header='{}'), dict(version='2')): # the one's text under the other's number
        with pytest.raises(FileError):
            (tmp_path/'c').write_bytes(with_texts((tmp_path/'b').read_bytes(), **other))
            load(tmp_path/'c', net) if other.get('version') else read_file(tmp_path/'missing')


# ---- writing

@pytest.fixture
def umask():
    old = os.umask(0o077)
    try: yield
    finally: os.umask(old)

def mode(p): return stat.S_IMODE(os.stat(p).st_mode)

def test_permissions(tmp_path, umask):
    p = tmp_path/'a'
    write_atomic(p, b'1'); assert mode(p) == 0o600
    for m in (0o600, 0o640, 0o664): p.chmod(m); write_atomic(p, b'2'); assert mode(p) == m
    os.umask(0o022); write_atomic(tmp_path/'b', b'3'); assert mode(tmp_path/'b') == 0o644

def test_links(tmp_path):
    "Also a link to a link, one into another folder, one to what is not there yet; a loop is the system's error."
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'t').write_bytes(b'old')
    (tmp_path/'l').symlink_to('d/t'); (tmp_path/'m').symlink_to('l'); (tmp_path/'n').symlink_to('d/new')
    for name, target in (('l', 't'), ('m', 't'), ('n', 'new')):
        write_atomic(tmp_path/name, name.encode())
        assert (tmp_path/name).is_symlink() and (tmp_path/'d'/target).read_bytes() == name.encode()
    (tmp_path/'o').symlink_to('o')
    with pytest.raises(OSError): write_atomic(tmp_path/'o', b'')
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['d', 'l', 'm', 'n', 'new', 'o', 't']

def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path/'f'); (tmp_path/'l').symlink_to('f'); (tmp_path/'d').mkdir()
    places = [tmp_path/'f', tmp_path/'l', tmp_path/'d']
    try: os.mknod(tmp_path/'n', 0o666 | stat.S_IFCHR, os.makedev(1, 3)); places.append(tmp_path/'n')
    except PermissionError: pass
    for p in places:
        kind = stat.S_IFMT(os.stat(p).st_mode)
        with pytest.raises(FileError, match='no plain file'): write_atomic(p, b'x')
        assert stat.S_IFMT(os.stat(p).st_mode) == kind
    assert not list(tmp_path.glob('.*'))

def test_dead_writers(tmp_path):
    """What a killed writer left goes with the next write to the same target, and only that; what lives, or belongs
    elsewhere, stays."""
    code = ("import os, signal; from udfc_nb.writing import write_atomic; os.replace = lambda *a: "
        "os.kill(os.getpid(), signal.SIGKILL); write_atomic('a', b'half')")
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1]))
    for _ in range(2): subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env)
    assert not (tmp_path/'a').exists() and len(list(tmp_path.glob('.a.*'))) == 1, (
        'the second cleared up after the first')
    dead, = tmp_path.glob('.a.*'); here, pid, rest = dead.name.removeprefix('.a.').split('-')
    stay = [f'.a.{here}-{os.getpid()}-{rest}', f'.b.{here}-{pid}-{rest}', f'.a.{"0"*8}-{pid}-{rest}',
        f'.a.{here}-{pid}-x.tmp', '.a.txt', f'.a.{here}-{pid}-{rest}.old']
    for name in stay: (tmp_path/name).write_bytes(b'')
    write_atomic(tmp_path/'a', b'new')
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['a', *stay])

def test_two_writers(tmp_path):
    "At once: whole files of the one or the other, and nothing left over."
    code = ("import sys; from udfc_nb.writing import write_atomic\nfor _ in range(40): write_atomic('a', "
        "sys.argv[1].encode()*100_000)")
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])); (tmp_path/'a').write_bytes(b'0'*100_000)
    writers = [subprocess.Popen([sys.executable, '-c', code, c], cwd=tmp_path, env=env) for c in '12']
    while any(w.poll() is None for w in writers):
        assert (tmp_path/'a').read_bytes() in (b'0'*100_000, b'1'*100_000, b'2'*100_000)
    assert [w.returncode for w in writers] == [0, 0] and [p.name for p in tmp_path.iterdir()] == ['a']

@pytest.mark.parametrize('what', ['open', 'write', 'fsync', 'replace'])
def test_a_system_that_refuses(what, tmp_path, monkeypatch):
    """A read-only folder, a full disk, a rename that is not allowed: the old file, nothing beside it, the system's
    error."""
    write_atomic(tmp_path/'a', b'old')
    def refuse(*args, **kwargs): raise OSError(30, 'Read-only file system')
    if what == 'write':
        class Full:
            def __init__(self, fd, mode): os.close(fd)
            def __enter__(self): return self
            def __exit__(self, *e): pass
            write = refuse
        monkeypatch.setattr(os, 'fdopen', Full)
    else: monkeypatch.setattr(os, what, refuse)
    with pytest.raises(OSError, match='Read-only'): write_atomic(tmp_path/'a', b'new')
    if what == 'open':
        with pytest.raises(OSError, match='Read-only'): check_writable(tmp_path/'a')
    monkeypatch.undo()
    assert (tmp_path/'a').read_bytes() == b'old' and [p.name for p in tmp_path.iterdir()] == ['a']

def test_longest_name(tmp_path):
    p = tmp_path/('ä'*127); write_atomic(p, b'x'); write_atomic(p, b'y')
    assert p.read_bytes() == b'y' and len(list(tmp_path.iterdir())) == 1

@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, 'float16', None])
def test_dtypes_that_are_none(dtype, tmp_path):
    out = compress(chain(), x, weight_bits=8)
    with pytest.raises(UnsupportedError, match='torch.bfloat16'): out.save(tmp_path/'a', dtype=dtype)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, tmp_path):
    net = chain(); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a', dtype=dtype)
    want = {n: t if n.removesuffix('.weight') in out.codes or not t.is_floating_point() else t.to(dtype).float()
        for n, t in out.model.state_dict().items()}
    assert all(torch.equal(t, want[n]) for n, t in load(tmp_path/'a', net).state_dict().items())

def test_numbers_that_a_type_does_not_hold(tmp_path):
    net = chain(); net[1].running_var.fill_(1e6); out = compress(net, x, recipe='prune')
    with pytest.raises(UnsupportedError, match='1.running_var'): out.save(tmp_path/'a', dtype=torch.float16)
    out.save(tmp_path/'a', dtype=torch.bfloat16); load(tmp_path/'a', net)
    out.model[1].running_var[0] = float('nan')
    with pytest.raises(NonFiniteError): out.save(tmp_path/'b')


# ---- what a state dict holds besides floats, and what it leaves out

class Holds(nn.Module):
    "A gain per channel, held in some way, and a mask that no channel has."
    def __init__(self, how):
        super().__init__()
        self.a, self.b, gain = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), torch.linspace(.5, 1.5, 16).view(1, 16, 1, 1)
        if how == 'attribute': self.m = gain
        else: self.register_buffer('m', gain, persistent=how == 'persistent')
        self.register_buffer('mask', torch.ones(10, 10, dtype=torch.bool), persistent=False)
    def forward(self, x): return self.b(self.a(x).relu()*self.m*self.mask)

@pytest.mark.parametrize('how', ['persistent', 'not persistent', 'attribute'])
def test_tensors_outside_of_the_state_dict(how, tmp_path):
    net = Holds(how).eval(); out = compress(net, x, pruning_ratio=.5); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', net)(x), out.model(x))
    if how == 'not persistent': # a list that names what is not there, or what belongs elsewhere
        data = (tmp_path/'a').read_bytes()
        for told in ({}, [3], ['none'], ['a.weight'], ['a.bias', 'm'], ['m', 'm']):
            (tmp_path/'b').write_bytes(with_header(data, lambda h: h | dict(beside=told)))
            with pytest.raises(FileError): load(tmp_path/'b', net)

class Grows(nn.Module):
    "A table made in the first run: the fresh architecture does not have it."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer('table', None, persistent=False)
    def forward(self, x):
        if self.table is None or len(self.table) < x.shape[-1]: self.table = torch.arange(x.shape[-1])/10
        return self.b(self.a(x*self.table[:x.shape[-1]]).relu())

def test_a_table_that_grows(tmp_path):
    net = Grows().eval(); net(x); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a')
    for fresh in (Grows().eval(), net): assert torch.equal(load(tmp_path/'a', fresh)(x), out.model(x))

class Counts(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.a, self.b, self.state = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), state
    def get_extra_state(self): return self.state
    def set_extra_state(self, state): self.state = state
    def forward(self, x): return self.b(self.a(x).relu())

def test_extra_state(tmp_path):
    with pytest.raises(UnsupportedError, match='_extra_state'):
        compress(Counts(dict(calls=3)).eval(), x, weight_bits=4).save(tmp_path/'a')
    compress(Counts(torch.tensor([3, 4])).eval(), x, weight_bits=4).save(tmp_path/'a') # as the hint says
    assert load(tmp_path/'a', Counts(torch.tensor([0, 0]))).state.tolist() == [3, 4]

class Spectral(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.a, self.b, self.w = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3),
            nn.Parameter(torch.randn(8, 12, 7, dtype=dtype)))
    def forward(self, x): return self.b(torch.fft.irfft2(torch.fft.rfft2(self.a(x))*self.w, s=(12, 12)).float())

def test_complex(tmp_path):
    net = Spectral(torch.complex64).eval(); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', net)(x), out.model(x)) and out.model.w.imag.any()
    (tmp_path/'b').write_bytes(with_tensors((tmp_path/'a').read_bytes(), lambda ts: ts | dict(w=ts['w'].real.clone())))
    with pytest.raises(FileError, match='w has'): load(tmp_path/'b', net)
    net.w = nn.Parameter(net.w.detach().conj()); out = compress(net, x); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', net).w, out.model.w)
    net = Spectral(torch.complex128).eval(); out = compress(net, x, recipe='prune'); out.save(tmp_path/'c')
    assert torch.equal(load(tmp_path/'c', net).w, out.model.w) and out.model.w.dtype == torch.complex128

class Every(nn.Module):
    "A buffer of each type."
    def __init__(self, full=True):
        super().__init__(); self.a = nn.Linear(3, 4)
        for i, (name, dtype) in enumerate(NAMES.items()):
            t = (torch.view_as_complex(torch.randn(5, 2, dtype=torch.float64)) if dtype.is_complex
                else torch.rand(2, 3)*4)
            self.register_buffer(f'b_{name}', t.to(dtype) if full else torch.zeros_like(t).to(dtype),
                persistent=bool(i % 3))
    def forward(self, x): return self.a(x)

def same_bytes(a, b):
    return (a.dtype == b.dtype and a.shape == b.shape
        and bytes(a.reshape(-1).view(torch.uint8).numpy()) == bytes(b.reshape(-1).view(torch.uint8).numpy()))

def test_every_type(tmp_path):
    net = Every().eval(); Compressed(net, None).save(tmp_path/'a')
    again = load(tmp_path/'a', lambda: Every(False))
    for n, t in net.named_buffers(): assert same_bytes(t, again.get_buffer(n)), n
    data = (tmp_path/'a').read_bytes(); h = header_of(data)
    for told in ({'b_complex128': 'float64'}, {'b_complex128': 'complex32'}, {'b_int8': 'float8_e8m0fnu'},
            {'none': 'complex128'}, {'b_complex128': ['x']}):
        (tmp_path/'b').write_bytes(with_header(data, lambda h: h | dict(dtypes=h['dtypes'] | told)))
        with pytest.raises(FileError): load(tmp_path/'b', net)

def test_tensors_at_odd_addresses(tmp_path):
    "Behind one byte nothing is aligned; the numbers are read all the same."
    body, table = b'\x07', dict(a=dict(dtype='U8', shape=[1], data_offsets=[0, 1]))
    for name, kind in (('b', 'F64'), ('c', 'C64'), ('d', 'F16'), ('e', 'I64'), ('f', 'F32')):
        raw = torch.randn(64, dtype=torch.float64).to(TYPES[kind]).view(torch.uint8).numpy().tobytes()
        table[name] = dict(dtype=kind, shape=[64], data_offsets=[len(body), len(body)+len(raw)]); body += raw
    (tmp_path/'a').write_bytes(join(table, body)); theirs = from_bytes((tmp_path/'a').read_bytes())
    for mapped in (False, True):
        for n, t in read_tensors(OneReading(tmp_path/'a', mapped))[0].items():
            assert torch.equal(t, theirs[n]) and torch.equal(t+0, theirs[n])

# ---- one tensor under several names

class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.a, self.b, self.c, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        if tied: self.c.weight = self.b.weight; self.d = self.a # a module that stands in two places
    def forward(self, x): return self.f(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3)))

@pytest.mark.parametrize('bits', [None, 4])
def test_tied(bits, tmp_path):
    net = Tied().eval(); out = compress(net, x, weight_bits=bits, recipe='prune'); size = out.save(tmp_path/'a')
    again = load(tmp_path/'a', Tied)
    assert torch.equal(again(x), out.model(x)) and again.c.weight is again.b.weight and again.d is again.a
    assert header_of((tmp_path/'a').read_bytes())['same'] == {'c.weight': 'b.weight', 'd.weight': 'a.weight',
        'd.bias': 'a.bias'}
    assert ({r['tensor'] for r in file_rows(tmp_path/'a')} == set(net.state_dict())
        and sum(v for k, v in itemise(tmp_path/'a').items() if k != 'file') == size)
    (tmp_path/'b').write_bytes(as_version_1(tmp_path/'a')); old = load(tmp_path/'b', Tied)
    assert torch.equal(old(x), out.model(x)) and old.c.weight is old.b.weight
    for n, q in read_codes(tmp_path/'a').items(): assert torch.equal(q.dequantize(), again.get_submodule(n).weight)
    if bits is None:
        (tmp_path/'c').write_bytes(with_tensors((tmp_path/'b').read_bytes(),
            lambda ts: ts | {'c.weight': ts['c.weight']+1}))
        with pytest.raises(FileError, match='one tensor in the architecture'): load(tmp_path/'c', Tied)
    for told in ({'c.weight': 'f.weight'}, {'c.weight': 'c.weight'}, {'c.weight': 'd.weight'}, {'f.bias': 'a.bias'},
            {'c.weight': 3}):
        (tmp_path/'c').write_bytes(with_header((tmp_path/'a').read_bytes(), lambda h: h | dict(same=h['same'] | told)))
        with pytest.raises(FileError): load(tmp_path/'c', Tied)

def test_tied_no_more(tmp_path):
    "An architecture that does not tie them gets tensors of their own."
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(); net[1].weight = net[0].weight
    Compressed(net, None).save(tmp_path/'a')
    again = load(tmp_path/'a', nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    with torch.no_grad(): again[0].weight.zero_()
    assert torch.equal(again[1].weight, net[1].weight)

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.r, self.f = nn.Conv1d(3, 8, 3), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)
    def forward(self, x): return self.f(self.r(self.a(x).transpose(1, 2))[0][:, -1])

def test_recurrent(tmp_path):
    "The list of weights that an LSTM keeps is that of the file, not of the architecture."
    net, y = Recurrent().eval(), torch.randn(2, 3, 20)
    out = compress(net, y, pruning_ratio=.25, weight_bits=8, recipe='prune'); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', Recurrent)(y), out.model(y))

def test_a_network_that_is_one_layer(tmp_path):
    net = nn.Conv2d(3, 4, 3).eval(); out = compress(net, x, weight_bits=4, recipe='prune'); out.save(tmp_path/'a')
    assert ('' in out.codes and torch.equal(load(tmp_path/'a', nn.Conv2d(3, 4, 3))(x), out.model(x))
        and read_codes(tmp_path/'a').keys() == {''})

def test_architectures_of_other_kinds(tmp_path):
    "Wrapped, on the meta device, channels last, scripted parts, lazy."
    net = chain(); out = compress(net, x, weight_bits=4); out.save(tmp_path/'a'); want = out.model(x)
    assert torch.equal(load(tmp_path/'a', nn.DataParallel(net))(x), want)
    with torch.device('meta'): bare = chain()
    assert torch.equal(load(tmp_path/'a', bare)(x), want)
    again = load(tmp_path/'a', chain().to(memory_format=torch.channels_last))
    assert (again[3].weight.is_contiguous(memory_format=torch.channels_last)
        and torch.allclose(again(x), want, atol=1e-5))
    with pytest.raises(UnsupportedError, match='lazy'): load(tmp_path/'a', nn.Sequential(nn.LazyConv2d(8, 3)))
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), nn.Conv2d(4, 2, 3)
        def forward(self, x): return self.b(self.a(x))
    net = Parts().eval(); Compressed(net, None).save(tmp_path/'b')
    assert torch.equal(load(tmp_path/'b', Parts())(x), net(x))
