"Files: what is written where, what one reading is, and what a file may not claim."
import json, os, stat, time
from pathlib import Path
import pytest, torch, torch.nn as nn
from safetensors.torch import save as to_bytes
from udfc_nb import compress, load
from udfc_nb.checkpoint import OneReading, _checksum, file_rows, itemise, read_codes, read_file, write_atomic
from udfc_nb.cli import file_text
from udfc_nb.errors import FileError, NonFiniteError, UDFCError, UnsupportedError

x = torch.randn(2, 3, 12, 12)

def chain(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

def write(path, tensors, meta):
    "A file with the checksum that fits."
    meta = {k: v for k, v in meta.items() if k != 'sha256'}
    Path(path).write_bytes(to_bytes({n: t.contiguous() for n, t in tensors.items()}, meta | dict(sha256=_checksum(tensors, meta))))
    return path

def described(path, info, **tensors):
    return write(path, tensors, dict(format='udfc_nb', version='1', written_by='x', recipe='{}', description=json.dumps(info)))


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
        if str(p) == str(path): seen.append(p); Path(str(path)+'.new').write_bytes(others[len(seen) % 2]); os.replace(str(path)+'.new', path)
        return real(p, *a, **k)
    monkeypatch.setattr(builtins, 'open', opened)
    return seen

def test_one_opening_is_one_file(tmp_path, monkeypatch):
    net, p, files, texts = chain(), tmp_path/'a', [], []
    for bits in (8, 2): compress(net, x, weight_bits=bits).save(p); files.append(p.read_bytes()); texts.append(file_text(p))
    seen = swap_on_open(monkeypatch, p, files)
    for ask in (lambda: load(p, net), lambda: read_codes(p), lambda: read_file(p), lambda: itemise(p), lambda: file_rows(p), lambda: file_text(p)):
        for _ in range(2): seen.clear(); ask(); assert len(seen) == 1
    for _ in range(4): assert file_text(p) in texts
    one = OneReading(p); small = load(one, net)
    for n, q in read_codes(one).items(): assert torch.equal(q.dequantize(), small.get_submodule(n).weight)

def test_lengths_are_not_trusted(tmp_path):
    "Each at once; without codes as well as with many."
    for bits in (1, 8, 16):
        for shape in ([2**31], [2**31]*2, [2**31]*8, [2**31]*7+[0], [64, 2]):
            for deflated in (False, True):
                info = {'a': dict(bits=bits, shape=shape, low=0, deflated=deflated, zero=[0.])}
                p = described(tmp_path/'a', info, **{'a.weight.codes': torch.zeros(8, dtype=torch.uint8), 'a.weight.scale': torch.ones(1)})
                began = time.perf_counter()
                with pytest.raises(FileError, match='codes'): read_codes(p)
                assert time.perf_counter()-began < 2

def test_the_largest_unfolding_is_read(tmp_path):
    "Nothing that `save` writes is taken for a lie: equal codes are the most that deflate can do."
    net = nn.Sequential(nn.Linear(1024, 1024, bias=False)).eval()
    with torch.no_grad(): net[0].weight.fill_(1.)
    out = compress(net, torch.randn(2, 1024), weight_bits=8, recipe='fast'); out.save(tmp_path/'a', entropy=True)
    assert itemise(tmp_path/'a')['codes'] < 2000
    assert torch.equal(load(tmp_path/'a', net)[0].weight, out.model[0].weight)

def test_time_is_linear(tmp_path):
    took = []
    for n in (500, 2000):
        tensors = {f'{i}.weight.{k}': t for i in range(n) for k, t in (('codes', torch.zeros(1, dtype=torch.uint8)), ('scale', torch.ones(1)))}
        p = described(tmp_path/'a', {str(i): dict(bits=8, shape=[1, 1], low=0, deflated=False, zero=[0.]) for i in range(n)}, **tensors)
        def seconds(f): began = time.process_time(); f(p); return time.process_time()-began
        took.append([min(seconds(f) for _ in range(2)) for f in (read_file, itemise, file_rows, read_codes)])
    assert all(b < max(9*a, .2) for a, b in zip(*took)), took

CONTRADICTIONS = dict(next_layer=lambda t: {'5.bias': t['5.bias']*float('inf')}, mean=lambda t: {'1.running_mean': t['1.running_mean']*float('nan')},
    variance=lambda t: {'1.running_var': -1-t['1.running_var']}, steps=lambda t: {'5.weight.scale': torch.full_like(t['5.weight.scale'], 3e38)}, stray=lambda t: {'9.weight.codes': torch.zeros(4, dtype=torch.uint8)},
    codes_matrix=lambda t: {'5.weight.codes': t['5.weight.codes'][None]})

@pytest.mark.parametrize('name', CONTRADICTIONS)
def test_contradictions(name, tmp_path):
    net = chain(); compress(net, x, weight_bits=8, pruning_ratio=.25).save(tmp_path/'a')
    tensors, _, meta = read_file(tmp_path/'a')
    write(tmp_path/'b', tensors | CONTRADICTIONS[name](tensors), meta)
    load(tmp_path/'a', net)
    with pytest.raises(FileError): load(tmp_path/'b', net)


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
    (tmp_path/'d').mkdir(); (tmp_path/'d'/'t').write_bytes(b'old'); (tmp_path/'l').symlink_to('d/t'); (tmp_path/'m').symlink_to('l'); (tmp_path/'n').symlink_to('d/new')
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
    want = {n: t if n.removesuffix('.weight') in out.codes or not t.is_floating_point() else t.to(dtype).float() for n, t in out.model.state_dict().items()}
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
    tensors, _, meta = read_file(tmp_path/'a')
    if how == 'not persistent': # a list that names what is not there, or what belongs elsewhere
        for told in ('[', '{}', '[3]', '["none"]', '["a.weight"]', '["a.bias", "m"]'):
            with pytest.raises(FileError): load(write(tmp_path/'b', tensors, meta | dict(beside=told)), net)

class Grows(nn.Module):
    "A table made in the first run: the fresh architecture does not have it."
    def __init__(self): super().__init__(); self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3); self.register_buffer('table', None, persistent=False)
    def forward(self, x):
        if self.table is None or len(self.table) < x.shape[-1]: self.table = torch.arange(x.shape[-1])/10
        return self.b(self.a(x*self.table[:x.shape[-1]]).relu())

def test_a_table_that_grows(tmp_path):
    net = Grows().eval(); net(x); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a')
    for fresh in (Grows().eval(), net): assert torch.equal(load(tmp_path/'a', fresh)(x), out.model(x))

class Counts(nn.Module):
    def __init__(self, state): super().__init__(); self.a, self.b, self.state = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), state
    def get_extra_state(self): return self.state
    def set_extra_state(self, state): self.state = state
    def forward(self, x): return self.b(self.a(x).relu())

def test_extra_state(tmp_path):
    with pytest.raises(UnsupportedError, match='_extra_state'): compress(Counts(dict(calls=3)).eval(), x, weight_bits=4).save(tmp_path/'a')
    compress(Counts(torch.tensor([3, 4])).eval(), x, weight_bits=4).save(tmp_path/'a') # as the hint says
    assert load(tmp_path/'a', Counts(torch.tensor([0, 0]))).state.tolist() == [3, 4]

class Spectral(nn.Module):
    def __init__(self, dtype): super().__init__(); self.a, self.b, self.w = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), nn.Parameter(torch.randn(8, 12, 7, dtype=dtype))
    def forward(self, x): return self.b(torch.fft.irfft2(torch.fft.rfft2(self.a(x))*self.w, s=(12, 12)).float())

def test_complex(tmp_path):
    net = Spectral(torch.complex64).eval(); out = compress(net, x, weight_bits=8); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', net)(x), out.model(x)) and out.model.w.imag.any()
    tensors, _, meta = read_file(tmp_path/'a')
    with pytest.raises(FileError, match='w has'): load(write(tmp_path/'b', tensors | dict(w=tensors['w'].real.clone()), meta), net)
    net.w = nn.Parameter(net.w.detach().conj()); out = compress(net, x); out.save(tmp_path/'a')
    assert torch.equal(load(tmp_path/'a', net).w, out.model.w)
    out = compress(Spectral(torch.complex128).eval(), x, recipe='prune')
    with pytest.raises(UnsupportedError, match='w: torch.complex128'): out.save(tmp_path/'c')
