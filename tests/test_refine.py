"""Training on made images: the same result after an interruption, nothing lost when it fails, every kind of network
that the tracer takes."""
import copy, functools, importlib, json, math, os, random, signal, stat, tempfile
from pathlib import Path
import pytest, torch, torch.nn as nn
from udfc_nb import compress, load, refine
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.errors import (ArgumentError, Cancelled, ExampleInputError, FileError, NonFiniteError, RecipeError,
    UDFCError, UnsupportedError)
from udfc_nb.training.images import ImageSchedule
from udfc_nb.training.loop import distance, train
from udfc_nb.training.refine import finish, judge_of
from udfc_nb.training.schedules import METHODS, GDFQ, Transfer, ZeroQ, get_schedule
from udfc_nb.training.state import read_state
from udfc_nb.training.learner import Learner, digest
from udfc_nb.training.step import STEPS
from safetensors.torch import load_file, save as to_bytes
from nets import settle

SMALL = dict(batch=16, images=ImageSchedule(images=16, steps=5, class_weight=1.))
FAST = {'gdfq': METHODS['gdfq'].but(warmup=.2, width=8, **SMALL),
    'transfer': METHODS['transfer'].but(width=8, **SMALL), 'zeroq': METHODS['zeroq'].but(**SMALL),
    'streams': METHODS['streams'].but(batch=16, pool=16)}

@pytest.fixture(autouse=True)
def fewer_judges(monkeypatch, request):
    "Images to judge on cost more than these networks' training; the slow tests have all of them."
    if 'slow' not in request.keywords:
        monkeypatch.setattr(importlib.import_module('udfc_nb.training.learner'), 'JUDGES',
            ImageSchedule(images=16, steps=5, class_weight=1.))

def tiny(seed=0, size=4):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, size))
    return settle(net, 16, 3, 12, 12)

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
same = lambda a, b: all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))

@pytest.mark.parametrize('method', list(FAST))
@pytest.mark.parametrize('how',
    [dict(weight_bits=3, activation_bits=4), dict(pruning_ratio=.5), dict(pruning_ratio=.3, weight_bits=2)],
    ids=['rounded', 'pruned', 'both'])
def test_same_kind_of_object(method, how, tmp_path):
    net = tiny(); saved = copy.deepcopy(net.state_dict())
    out = compress(net, X, **how); before = copy.deepcopy(out.model.state_dict())
    r = refine(out, net, FAST[method], steps=8)
    assert (type(r.model) is type(net)
        and [p.shape for p in r.model.parameters()] == [p.shape for p in out.model.parameters()])
    assert list(r.model.state_dict()) == list(out.model.state_dict()) and not r.model.training
    assert (all(torch.equal(v, saved[k]) for k, v in net.state_dict().items())
        and all(torch.equal(v, before[k]) for k, v in out.model.state_dict().items()))
    assert all(p.grad is None for p in (*net.parameters(), *out.model.parameters(), *r.model.parameters()))
    assert all(q.bits == out.codes[n].bits and torch.equal(r.model.get_submodule(n).weight, q.dequantize())
        for n, q in r.codes.items())
    r.save(tmp_path/'a.safetensors')
    with torch.no_grad(): assert torch.equal(load(tmp_path/'a.safetensors', net)(X), r.model(X))
    assert r.report.settings['refine']['steps'] == 8 and json.loads(r.report.to_json())
    assert same(r.model, refine(out, net, FAST[method], steps=8).model), 'the same seed, another network'

@pytest.mark.parametrize('method', list(FAST))
@pytest.mark.parametrize('stop',
    [Cancelled('stopped'), KeyboardInterrupt(), RuntimeError('DefaultCPUAllocator: not enough memory')],
    ids=['cancelled', 'interrupted', 'no memory'])
def test_goes_on_as_if_nothing_had_happened(method, stop, tmp_path):
    # as rounded without repair: nearer the teacher, training may end before it is stopped
    net = tiny(); out = compress(net, X, recipe='omse', weight_bits=3, activation_bits=4)
    whole = refine(out, net, FAST[method], steps=60)
    def tick(done, total, what):
        if done == 33 and what != 'images': raise stop
    want = UDFCError if isinstance(stop, RuntimeError) and not isinstance(stop, UDFCError) else type(stop)
    with pytest.raises(want) as e: refine(out, net, FAST[method], steps=60, checkpoint=tmp_path/'s', progress=tick)
    if want is UDFCError: assert 'smaller batch' in str(e.value) and 'state of step 25' in str(e.value)
    rest = refine(out, net, FAST[method], steps=60, checkpoint=tmp_path/'s')
    assert same(rest.model, whole.model) and rest.curve == whole.curve
    assert same(refine(out, net, FAST[method], steps=60, checkpoint=tmp_path/'s').model,
        whole.model), 'a run that has ended is read, not repeated'

def test_not_a_number_half_way(monkeypatch, tmp_path):
    net = tiny(); out = compress(net, X, pruning_ratio=.5)
    real, calls = STEPS[GDFQ], []
    def bad(run):
        calls.append(run.step)
        if len(calls) == 31: raise NonFiniteError('nan', layer='here')
        return real(run)
    monkeypatch.setitem(STEPS, GDFQ, bad)
    r = refine(out, net, FAST['gdfq'].but(careful=False), steps=40)
    assert calls[31] == 25 and r.report.settings['refine']['rate_left'] == pytest.approx(1/3) and len(r.curve) == 40
    monkeypatch.setitem(STEPS, GDFQ, lambda run: (_ for _ in ()).throw(NonFiniteError('nan', layer='here')))
    with pytest.raises(NonFiniteError, match='smaller'):
        refine(out, net, FAST['gdfq'], steps=40, checkpoint=tmp_path/'s')
    assert (tmp_path/'s').exists()

# ---- the file

@functools.cache
def written():
    "A run with all that a state can hold, and the file of its 12 steps."
    net = tiny(); out = compress(net, X, weight_bits=4, activation_bits=4)
    how = FAST['gdfq'].but(steps=12, batch=8, width=4, latent=4, images=ImageSchedule(images=8, steps=3))
    with tempfile.TemporaryDirectory() as d:
        refine(out, net, how, checkpoint=Path(d)/'s')
        return net, out, how, (Path(d)/'s').read_bytes()

def state(tmp_path):
    (tmp_path/'s').write_bytes(written()[3])
    return tmp_path/'s'

def text_of(path):
    data = path.read_bytes()
    return json.loads(data[8:8+int.from_bytes(data[:8], 'little')])['__metadata__']

def rewrite(path, tensors=None, told=None, **meta):
    "What someone who knows the format writes: other contents with their own checksum."
    old = {n: t.clone() for n, t in load_file(path).items()}
    if tensors: tensors(old)
    text = text_of(path) | meta; text.pop('sha256')
    if told: inside = json.loads(text['state']); told(inside); text['state'] = json.dumps(inside)
    path.write_bytes(to_bytes({n: t.contiguous() for n, t in old.items()},
        text | dict(sha256=digest(old, json.dumps(text, sort_keys=True)))))

def reads(path, **change):
    net, out, how, _ = written()
    run = Learner(out, net, how.but(**change)); read_state(run, path)
    return run

def test_rewritten_without_a_change_is_taken(tmp_path):
    path = state(tmp_path); rewrite(path)
    assert reads(path).step == 12

def put(name, f):
    def change(tensors):
        n = next(n for n in sorted(tensors) if name in n)
        tensors[n] = f(tensors[n])
    return change

def one(x): return lambda t: t.flatten().index_fill(0, torch.tensor([0]), x).reshape(t.shape)
TENSORS = {
    'a name too many': lambda t: t.update(student=torch.ones(1)),
    'a name too few': lambda t: t.pop(min(n for n in t if n.startswith('student.'))),
    'no images': lambda t: t.pop('images'), 'no judges': lambda t: t.pop('judges'),
    'no chance': lambda t: t.pop('chance'), 'no curve': lambda t: t.pop('curve'),
    'half a momentum': lambda t: t.pop(next(n for n in t if n.endswith('exp_avg'))),
    'a foreign momentum': lambda t: t.update({'opt.student.99.momentum_buffer': torch.ones(1)}),
    'images of another size': put('images', lambda t: t[..., 1:]), 'fewer images': put('images', lambda t: t[1:]),
    'judges without colours': put('judges', lambda t: t[:, 0]),
    'other weights': put('parametrizations.weight.original', lambda t: t[1:]),
    'double weights': put('parametrizations.weight.original', lambda t: t.double()),
    'whole images': put('images', lambda t: t.to(torch.int64)), 'half judges': put('judges', lambda t: t.half()),
    'a number that is none': put('parametrizations.weight.original', one(math.nan)),
    'an infinite generator': put('generator', one(math.inf)),
    'an infinite momentum': put('momentum_buffer', one(-math.inf)),
    'images that are none': put('images', one(math.nan)),
    'a momentum of another shape': put('momentum_buffer', lambda t: t[:1]),
    'a negative square': put('exp_avg_sq', one(-1.)), 'half a step': put('.step', lambda t: t+.5),
    'too many steps': put('.step', lambda t: t+100),
    'a step of zero': put('.step', lambda t: 0*t), 'other statistics': put('student.1.running_mean', lambda t: t+1),
    'statistics of a generator that are none': put('generator.first.2.running_var', lambda t: -t),
    'another grid': put('parametrizations.weight.0.first', lambda t: 2*t),
    'another zero': put('input_quantizer.zero', lambda t: t+1),
    'a short curve': put('curve', lambda t: t[1:]), 'a curve of another kind': put('curve', lambda t: t.float()),
    'steps that are none': put('curve', lambda t: t.flip(0)),
    'an infinite loss': put('curve', lambda t: t.index_fill(1, torch.tensor([1]), math.inf)),
    'a silent step': put('curve', lambda t: torch.cat([t[:, :1], 0*t[:, 1:]+math.nan], 1)),
    'less chance': put('chance', lambda t: t[1:]), 'another chance': put('chance', lambda t: t.flip(0)),
    'chance in floats': put('chance', lambda t: t.float())}
TOLD = {
    'no counts': lambda s: s.clear(), 'one too many': lambda s: s.update(more=1),
    'one too few': lambda s: s.pop('rollbacks'),
    **{f'{n} {v!r}': functools.partial(lambda s, n, v: s.update({n: v}), n=n, v=v) for n, v in (
    ('step', -1), ('step', 13), ('step', 11), ('step', 12.), ('step', True), ('step', '12'), ('step', None),
    ('rate_scale', math.nan), ('rate_scale', 0.), ('rate_scale', 2.), ('rate_scale', -1.), ('rate_scale', 1),
    ('rate_scale', 1/3),
    ('student_scale', math.inf), ('student_scale', .5), ('student_scale', '1'),
    ('rollbacks', 1), ('rollbacks', 99), ('rollbacks', -1), ('rollbacks', .5), ('least_distance', math.nan),
    ('least_distance', 2.),
    ('least_distance', -1.), ('least_distance', 'near'), ('ranges_set', 1), ('ranges_set', True), ('ranges_set', 'no'),
    ('seconds', -1.),
    ('seconds', math.inf), ('seconds', 'long'), ('ended', 'for fun'), ('ended', 13), ('ended', False))}}

@pytest.mark.parametrize('kind', TENSORS)
def test_no_tensor_is_taken_unchecked(kind, tmp_path):
    path = state(tmp_path); rewrite(path, tensors=TENSORS[kind])
    with pytest.raises(FileError, match='not one of this run') as e: reads(path)
    assert e.value.layer == str(path) and 'anew' in e.value.hint

@pytest.mark.parametrize('kind', TOLD)
def test_no_count_is_taken_unchecked(kind, tmp_path):
    path = state(tmp_path); rewrite(path, told=TOLD[kind])
    with pytest.raises(FileError, match='not one of this run'): reads(path)

@pytest.mark.parametrize('change', [dict(ranges=True), dict(norms='batch')], ids=['ranges', 'norms of the batch'])
def test_what_may_move_is_checked_too(change, tmp_path):
    net, out, *_ = written()
    how = FAST['zeroq' if 'ranges' in change else 'transfer'].but(steps=3, batch=8,
        images=ImageSchedule(images=8, steps=3), **change)
    refine(out, net, how, checkpoint=tmp_path/'s'); whole = (tmp_path/'s').read_bytes()
    again = lambda: read_state(Learner(out, net, how), tmp_path/'s')
    again()
    wrong = dict(ranges=[put('input_quantizer.first', lambda t: -t), put('input_quantizer.zero', lambda t: t+.5),
        put('input_quantizer.zero', lambda t: t+1e4)],
        norms=[put('student.1.running_var', lambda t: -t),
        put('student.1.num_batches', lambda t: t-99)])[next(iter(change))]
    for w in wrong:
        (tmp_path/'s').write_bytes(whole); rewrite(tmp_path/'s', tensors=w)
        with pytest.raises(FileError, match='not one of this run'): again()

@pytest.mark.parametrize('text', ['', '[]', 'null', '{', '['*100_000, '{"step": 1}', '"state"'])
def test_no_text_is_taken_unchecked(text, tmp_path):
    path = state(tmp_path); whole = path.read_bytes()
    for part in ('state', 'settings'):
        path.write_bytes(whole); rewrite(path, **{part: text})
        with pytest.raises(FileError): reads(path)

def test_versions_and_kinds(tmp_path):
    path = state(tmp_path); whole = path.read_bytes()
    for how, told in ((dict(version='9'), 'version'), (dict(format='udfc_nb'), 'not a state')):
        path.write_bytes(whole); rewrite(path, **how)
        with pytest.raises(FileError, match=told): reads(path)

def test_every_flipped_bit_is_found(tmp_path):
    path = state(tmp_path); whole = path.read_bytes(); draw = random.Random(0)
    for at in draw.sample(range(len(whole)), 60):
        hurt = bytearray(whole); hurt[at] ^= 1 << draw.randrange(8); path.write_bytes(hurt)
        with pytest.raises(FileError): reads(path)

@pytest.mark.parametrize('spoil',
    [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b[:8]+b'{'*100, lambda b: b+b' ',
    lambda b: b.replace(b'chance', b'chanca')], ids=['cut', 'empty', 'no JSON', 'longer', 'renamed'])
def test_spoilt_files(spoil, tmp_path):
    net, out, how, _ = written(); path = state(tmp_path)
    path.write_bytes(spoil(path.read_bytes())); saved = path.read_bytes()
    with pytest.raises(FileError): refine(out, net, how, checkpoint=path)
    assert path.read_bytes() == saved, 'what is not understood is not written over'

@pytest.mark.parametrize('change,told',
    [(dict(batch=6), 'batch 8, here 6'), (dict(steps=11), 'steps 12, here 11'),
    (dict(temperature=3.), 'temperature 20.0, here 3.0'), (dict(learned=()), 'learned'),
    (dict(images=ImageSchedule(images=8, steps=4)), 'images')])
def test_another_setting_is_named(change, told, tmp_path):
    with pytest.raises(FileError, match=told): reads(state(tmp_path), **change)

def test_another_network_is_named(tmp_path):
    net, out, how, _ = written(); path = state(tmp_path)
    def names(*args, **kwargs):
        with pytest.raises(FileError, match='another run') as e: read_state(Learner(*args, **kwargs), path)
        return str(e.value).split('another run:')[1].split('What to do')[0]
    other = copy.deepcopy(net); other[0].bias.data[0] += 1e-3
    assert 'teacher' in names(out, other, how) and 'network' not in names(out, other, how)
    assert 'network' in names(compress(net, X, weight_bits=3, activation_bits=4), net, how)
    assert ('seed 0, here 1' in names(out, net, how, seed=1)
        and 'method "GDFQ", here "ZeroQ"' in names(out, net, FAST['zeroq'].but(steps=12)))
    assert 'shape' in names(compress(net, torch.zeros(1, 3, 16, 16), weight_bits=4, activation_bits=4), net, how)
    assert 'source' in names(out, net, how, source=refine(out, net, how, steps=1))

@pytest.mark.parametrize('name', ['none/ck', 'file/ck', 'folder', 'fifo', 'a'*300, 'a\0b', '', 'closed/ck', 'dangling'])
def test_a_file_that_cannot_be_written_is_known_before_the_training(name, tmp_path):
    net, out, how, _ = written(); steps = []
    (tmp_path/'file').touch()
    (tmp_path/'folder').mkdir()
    (tmp_path/'closed').mkdir(mode=0o500)
    os.mkfifo(tmp_path/'fifo'); (tmp_path/'dangling').symlink_to(tmp_path/'none'/'ck')
    if name == 'closed/ck' and os.access(tmp_path/'closed', os.W_OK): pytest.skip('nothing is closed to this user')
    with pytest.raises(FileError) as e:
        refine(out, net, how, checkpoint=os.path.join(tmp_path, name) if name else '',
            progress=lambda *told: steps.append(told))
    assert not steps and e.value.layer and e.value.hint

@pytest.mark.parametrize('path', [3, True, b'ck', ['ck']])
def test_what_is_no_path_is_refused(path):
    net, out, how, _ = written()
    with pytest.raises(ArgumentError, match='checkpoint'): refine(out, net, how, checkpoint=path)

def test_a_file_that_can_be_written_no_longer_does_not_cost_the_training(tmp_path):
    net, out, how, _ = written(); (tmp_path/'there').mkdir()
    def gone(done, total, what):
        if done == 5 and isinstance(what, dict) and (tmp_path/'there').exists():
            (tmp_path/'there'/'ck').unlink()
            (tmp_path/'there').rmdir()
    r = refine(out, net, how, checkpoint=tmp_path/'there'/'ck', progress=gone)
    assert len(r.curve) == 12 and any('could not be written' in n for n in r.report.notes)
    assert same(r.model, refine(out, net, how).model)

def test_written_like_other_files(tmp_path):
    "Links are followed, permissions stay, nothing lies beside it."
    (tmp_path/'real').mkdir()
    path = state(tmp_path)
    os.chmod(path, 0o640); path.rename(tmp_path/'real'/'s'); path.symlink_to(tmp_path/'real'/'s')
    net, out, how, _ = written()
    refine(out, net, how, checkpoint=path)
    with pytest.raises(Cancelled):
        refine(out, net, how.but(steps=13), checkpoint=tmp_path/'real'/'t', progress=stop_at(5))
    assert (path.is_symlink() and stat.S_IMODE(os.stat(path).st_mode) == 0o640
        and sorted(os.listdir(tmp_path/'real')) == ['s', 't'])

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
@pytest.mark.slow # forked out of a process that has run threads it can hang; alone it passes
def test_killed_twenty_times(tmp_path, monkeypatch):
    """At any step, while images are made, and while the file is written: what comes out in the end is the network of
    the run that nobody stopped, bit for bit."""
    if torch.cuda.is_initialized(): pytest.skip('cannot fork beside a GPU')
    module, real = importlib.import_module('udfc_nb.training.refine'), os.replace
    monkeypatch.setattr(module, 'KEEP_EVERY', 1)
    net = tiny(); out = compress(net, X, weight_bits=3, activation_bits=4)
    how = FAST['gdfq'].but(steps=120, batch=8, width=4, latent=4, careful=False,
        images=ImageSchedule(images=8, steps=4))
    def leg(name, ticks=None, writes=None):
        """One process; it kills itself at so many calls of its progress function or at so many writings, before or
        after the new file has its name."""
        pid = os.fork()
        if pid: return os.waitpid(pid, 0)[1]
        left = dict(ticks=ticks, writes=writes)
        def count(what):
            if left[what] is not None:
                left[what] -= 1
                if left[what] <= 0: os.kill(os.getpid(), signal.SIGKILL)
        def replace(a, b):
            if name == 'killed' and random.random() < .5: real(a, b)
            count('writes'); return real(a, b) if os.path.exists(a) else None
        try:
            torch.set_num_threads(1); os.replace = replace
            r = refine(out, net, how, checkpoint=tmp_path/name, progress=lambda *_: count('ticks'))
            (tmp_path/f'{name}.done').write_bytes(to_bytes({f'{i}': t.contiguous()
                for i, t in enumerate(r.model.state_dict().values())} | dict(
                curve=torch.tensor([[c.get('student', -1.), c.get('generator', -1.)] for c in r.curve],
                dtype=torch.float64))))
            os._exit(0)
        except BaseException as e: print(repr(e), flush=True); os._exit(1)
    assert leg('whole') == 0
    draw, steps = random.Random(1), []
    for i in range(20):
        random.seed(i)
        assert leg('killed', **{('ticks',
            'writes')[i%2]: draw.randrange(*((1, 10), (1, 5))[i%2])}) == signal.SIGKILL, f'leg {i} was not killed'
        if (tmp_path/'killed').exists(): steps.append(json.loads(text_of(tmp_path/'killed')['state'])['step'])
    assert leg('killed') == 0 and steps == sorted(steps) and 10 < steps[-1] < 120, steps
    assert (tmp_path/'killed.done').read_bytes() == (tmp_path/'whole.done').read_bytes()

@pytest.mark.parametrize('method', ['gdfq', 'transfer', 'zeroq'])
def test_source_is_gone_on_with(method, tmp_path):
    net = tiny(); out, cut = compress(net, X, weight_bits=4), compress(net, X, pruning_ratio=.5)
    alone = refine(out, net, FAST[method].but(**(dict(warmup=1.) if method == 'gdfq' else {})), steps=4
        if method == 'gdfq' else 0)
    assert same(alone.model, out.model) and not any('further' in n for n in alone.report.notes)
    saved = {n: t.clone() for n, t in alone.made.items()}
    r = refine(cut, net, FAST[method], steps=30, source=alone)
    assert sum('student' in c for c in r.curve) == 30 and all(torch.equal(t, saved[n]) for n, t in alone.made.items())
    assert all(torch.equal(r.made[n], alone.made[n]) for n in ('judges', 'images'))
    def tick(done, total, what):
        if done == 27 and what != 'images': raise Cancelled('stopped')
    with pytest.raises(Cancelled):
        refine(cut, net, FAST[method], steps=30, source=alone, checkpoint=tmp_path/'s', progress=tick)
    assert same(refine(cut, net, FAST[method], steps=30, source=alone, checkpoint=tmp_path/'s').model, r.model)
    # no longer from that source
    with pytest.raises(FileError, match='another run'):
        refine(cut, net, FAST[method], steps=30, checkpoint=tmp_path/'s')

def test_foreign_source_is_refused():
    net = tiny(); out = compress(net, X, weight_bits=4)
    made = {m: refine(out, net, FAST[m], steps=0) for m in FAST}
    for source, method in (('zeroq', 'gdfq'), ('streams', 'gdfq'), ('transfer', 'gdfq'), ('gdfq', 'transfer')):
        with pytest.raises(RecipeError, match='source'): refine(out, net, FAST[method], steps=1, source=made[source])
    with pytest.raises(RecipeError, match='source'): refine(out, net, FAST['gdfq'], steps=1, source=out)
    other = tiny(seed=7); cut = compress(other, X, weight_bits=4)
    with pytest.raises(RecipeError, match='another network'):
        refine(cut, other, FAST['gdfq'], steps=1, source=made['gdfq'])
    large = compress(net, torch.randn(2, 3, 16, 16), weight_bits=4)
    with pytest.raises(RecipeError, match='source'): refine(large, net, FAST['zeroq'], steps=1, source=made['zeroq'])

def steps_of(model):
    return {n: (m.input_quantizer.scale, m.input_quantizer.bits) for n, m in model.named_modules()
        if getattr(m, 'input_quantizer', None) is not None}

@pytest.mark.parametrize('method', list(FAST))
def test_learned_steps(method, tmp_path, monkeypatch):
    module, nearer = importlib.import_module('udfc_nb.training.refine'), iter(range(100)) # whatever it is worth
    monkeypatch.setattr(module, 'teacher_distance', lambda run, model: 1/(2+next(nearer)))
    monkeypatch.setattr(module, 'judged_worse', lambda run: (False, None, None))
    net = tiny()
    out = compress(net, X, weight_bits=4, activation_bits=4)
    how = FAST[method].but(learned=('inputs',), lr_steps=2e-2, careful=False)
    r = refine(out, net, how, steps=20)
    before, after = steps_of(out.model), steps_of(r.model)
    assert before.keys() == after.keys() and {b for _, b in before.values()} == {4, 8}
    for n, (s, bits) in before.items():
        assert (after[n] == (s, bits)) == (bits == 8), 'the grid of the image stays, those of few bits move'
        assert .5 < after[n][0]/s < 2 and after[n][1] == bits
    for n, q in out.codes.items(): assert torch.equal(q.scale, r.codes[n].scale), 'of the weights only the codes move'
    r.save(tmp_path/'f.safetensors')
    with torch.no_grad(): assert torch.equal(load(tmp_path/'f.safetensors', net)(X), r.model(X))
    fixed = refine(out, net, how.but(learned=()), steps=20)
    assert steps_of(fixed.model) == before

def test_the_student_is_what_is_given_back(monkeypatch):
    "Biases lie on steps of sums whose own steps have been learned."
    module, nearer = importlib.import_module('udfc_nb.training.refine'), iter(range(100)) # whatever it is worth
    monkeypatch.setattr(module, 'teacher_distance', lambda run, model: 1/(2+next(nearer)))
    monkeypatch.setattr(module, 'judged_worse', lambda run: (False, None, None))
    net = tiny(); out = compress(net, X, weight_bits=4, activation_bits=4)
    run = Learner(out, net, FAST['gdfq'].but(learned=('inputs',), lr_steps=2e-2, careful=False,
        warmup=0.).but(steps=10))
    train(run)
    assert ({n for n in run.opts} == {'student', 'steps', 'generator'}
        and any(p.abs() > .01 for p in run.opts['steps'].param_groups[0]['params']))
    with torch.no_grad(): was = run.student.eval()(X)
    with torch.no_grad(): torch.testing.assert_close(finish(run).model(X), was, atol=1e-4, rtol=1e-4)

def test_wide_grids_are_not_learned():
    net = tiny(); out = compress(net, X, weight_bits=8, activation_bits=8)
    assert 'steps' not in Learner(out, net, FAST['gdfq'].but(learned=('inputs', 'weights'))).opts

@pytest.mark.parametrize('learned', [('biases',), 'inputs', True, ('inputs', 'scale')])
def test_unknown_learned_is_refused(learned):
    with pytest.raises(RecipeError, match='learned'): get_schedule(FAST['gdfq'].but(learned=learned))

def stop_at(n):
    def tick(done, total, what):
        if done == n and what != 'images': raise Cancelled('stopped')
    return tick

@pytest.mark.parametrize('change',
    [dict(norms='batch'), dict(learned=('weights', 'inputs')), dict(ranges=True), dict(lr_student=3., careful=True)],
    ids=['norms of the batch', 'learned steps', 'ranges', 'falls back'])
def test_goes_on_in_every_mode(change, tmp_path):
    torch.manual_seed(0)
    net = settle(nn.Sequential(*list(tiny())[:-1], nn.Dropout(.5), nn.Linear(8, 4)), 16, 3, 12, 12)
    out = compress(net, X, weight_bits=4, activation_bits=4)
    how = FAST['zeroq' if 'ranges' in change else 'transfer'].but(**dict(careful=False) | change)
    torch.manual_seed(1); whole = refine(out, net, how, steps=60)
    for n in (3, 20 if 'careful' in change else 40):
        torch.manual_seed(n) # the world's chance has no say
        with pytest.raises(Cancelled): refine(out, net, how, steps=60, checkpoint=tmp_path/str(n), progress=stop_at(n))
        rest = refine(out, net, how, steps=60, checkpoint=tmp_path/str(n))
        assert same(rest.model, whole.model) and rest.curve == whole.curve
    if 'careful' in change: assert whole.report.settings['refine']['rate_left'] < .2, 'it never fell back'

def test_goes_on_after_a_fall(monkeypatch, tmp_path):
    net = tiny(); out = compress(net, X, pruning_ratio=.5)
    real, failed = STEPS[Transfer], []
    def bad(run):
        if run.step == 30 and run.rollbacks < 2: failed.append(run.step); raise NonFiniteError('nan', layer='here')
        return real(run)
    monkeypatch.setitem(STEPS, Transfer, bad)
    whole = refine(out, net, FAST['transfer'], steps=60)
    assert failed == [30, 30]
    seen = []
    def tick(done, total, what):
        seen.append(done)
        if seen.count(28) == 2: raise Cancelled('stopped')
    with pytest.raises(Cancelled): refine(out, net, FAST['transfer'], steps=60, checkpoint=tmp_path/'s', progress=tick)
    rest = refine(out, net, FAST['transfer'], steps=60, checkpoint=tmp_path/'s')
    assert (same(rest.model, whole.model) and rest.curve == whole.curve
        and rest.report.settings['refine']['rate_left'] == whole.report.settings['refine']['rate_left'])

def test_seconds_of_all_legs(tmp_path):
    net = tiny(); out = compress(net, X, weight_bits=4)
    first = refine(out, net, FAST['transfer'], steps=20, checkpoint=tmp_path/'s').report.settings['refine']['seconds']
    assert refine(out, net, FAST['transfer'], steps=20,
        checkpoint=tmp_path/'s').report.settings['refine']['seconds'] > .5*first

def test_other_grids_are_another_run(tmp_path):
    net = tiny(); a, b = (compress(net, X, activation_bits=k, recipe='prune') for k in (4, 3))
    refine(a, net, FAST['transfer'], steps=3, checkpoint=tmp_path/'s')
    with pytest.raises(FileError, match='another run'):
        refine(b, net, FAST['transfer'], steps=3, checkpoint=tmp_path/'s')

def test_answering_less_is_not_nearer():
    "The measure is blind to scale and to a constant answer, and sees everything else."
    net, x = tiny(), torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(2); noise, c = torch.randn(40, 4, generator=g), torch.randn(4, generator=g)
    class Says(nn.Module):
        def __init__(self, f): super().__init__(); self.f = f
        def forward(self, b): return self.f(net(b), next(i for i in range(0, 40, 8) if torch.equal(b[0], x[i])))
    teacher_distance = lambda f: distance(Says(f), net, x)
    spread = (net(x)-net(x).mean(0)).std().item(); print(spread)
    noisy = [teacher_distance(lambda t, i, k=k: t+k*spread*noise[i:i+len(t)]) for k in (.1, .5, 2.)]
    assert (teacher_distance(lambda t, i: t) == pytest.approx(0, abs=1e-6)
        and teacher_distance(lambda t, i: 3*t+spread*c) == pytest.approx(0, abs=1e-6))
    assert (teacher_distance(lambda t, i: 0*t+c) == pytest.approx(1) and teacher_distance(lambda t, i: -t) == 1
        and 0 < noisy[0] < noisy[1] < noisy[2] < 1)
    assert teacher_distance(lambda t, i: .01*(t+.5*spread*noise[i:i+len(t)])) == pytest.approx(noisy[1], rel=1e-3)

def test_not_nearer_is_given_back(monkeypatch):
    "A student that only learns to answer less has its start back."
    net = tiny(); out = compress(net, X, weight_bits=3)
    def shrink(run):
        with torch.no_grad(): run.student[-1].parametrizations.weight.original.mul_(.2)
        return dict(student=0.)
    monkeypatch.setitem(STEPS, Transfer, shrink)
    r = refine(out, net, FAST['transfer'].but(careful=False), steps=4)
    told = r.report.settings['refine']
    assert (same(r.model, out.model) and any('as it was' in n for n in r.report.notes)
        and told['distance_before'] < told['distance_after'] <= 1)
    r = refine(out, net, FAST['transfer'], steps=60)
    assert same(r.model, out.model) and any('ended at step' in n for n in r.report.notes), (
        'it goes astray until it is ended')

@pytest.mark.parametrize('method', list(FAST))
@pytest.mark.parametrize('how', [dict(weight_bits=3, activation_bits=4), dict(pruning_ratio=.5)],
    ids=['rounded', 'pruned'])
def test_nothing_is_returned_that_the_judge_finds_worse(method, how, monkeypatch):
    "The training goes astray, and what the run itself is judged by does not see it."
    net = tiny(); out = compress(net, X, **how); judge, kind = judge_of(out, net), type(FAST[method])
    def wander(run):
        gen = torch.Generator().manual_seed(run.step)
        with torch.no_grad():
            for p in run.student.parameters(): p += .3*p.abs().mean()*torch.randn(p.shape, generator=gen)
        return dict(student=0.)
    monkeypatch.setitem(STEPS, kind, wander)
    nearer = iter(range(100))
    monkeypatch.setattr(importlib.import_module('udfc_nb.training.refine'), 'teacher_distance', lambda run,
        model: 1/(2+next(nearer)))
    r = refine(out, net, FAST[method].but(careful=False), steps=5)
    told = r.report.settings['refine']
    assert told['judged_after'] > told['judged_before'] == pytest.approx(judge(out.model)), 'it did not go astray'
    assert (same(r.model, out.model) and judge(r.model) == judge(out.model)
        and any('the judge finds' in n for n in r.report.notes))
    assert (r.codes.keys() == out.codes.keys()
        and all(torch.equal(q.codes, out.codes[n].codes) for n, q in r.codes.items()))

@pytest.mark.parametrize('method', list(FAST))
def test_what_is_returned_is_judged_no_worse(method):
    for seed in range(3):
        net = tiny(seed); out = compress(net, X, weight_bits=3, activation_bits=3); judge = judge_of(out, net, seed)
        r = refine(out, net, FAST[method].but(lr_student=3e-2), steps=10, seed=seed)
        assert judge(r.model) <= judge(out.model)

def test_streams_learn_without_an_image_or_a_norm():
    net = tiny(); out = compress(net, X, pruning_ratio=.5, recipe='prune')
    r = refine(out, net, FAST['streams'], steps=60)
    assert r.curve[-1]['student'] < .5*r.curve[0]['student'] and not set(r.made)-{'teacher'}
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).eval()
    cut = compress(bare, X, pruning_ratio=.5, recipe='prune')
    assert len(refine(cut, bare, FAST['streams'], steps=3).curve) == 3
    for wrong in (dict(share=.5), dict(pool=0), dict(batch=1)):
        with pytest.raises(RecipeError): refine(out, net, FAST['streams'].but(**wrong), steps=1)
    with pytest.raises(UDFCError): refine(out, tiny(size=5), FAST['streams'], steps=1)

def test_falls_of_both_kinds_end(monkeypatch):
    "Not a number, then astray, then not a number …: every fall counts, so that it ends."
    net = tiny(); out = compress(net, X, weight_bits=3); steps = []
    def bad(run):
        steps.append(run.step); assert len(steps) < 1000, 'it never ends'
        if run.step == 20 and len(steps)%2: raise NonFiniteError('nan', layer='here')
        with torch.no_grad(): run.student[-1].parametrizations.weight.original.mul_(.5)
        return dict(student=0.)
    monkeypatch.setitem(STEPS, Transfer, bad)
    try: assert same(refine(out, net, FAST['transfer'], steps=60).model, out.model)
    except NonFiniteError as e: assert 'smaller' in str(e)
    assert steps.count(0) > 3

def test_groups_of_images_are_even():
    net = tiny(); out = compress(net, X, weight_bits=4)
    r = refine(out, net, FAST['zeroq'].but(batch=6, images=ImageSchedule(images=13, steps=2, class_weight=1.)), steps=2)
    assert r.made['images'].shape == (13, 3, 12, 12)
    with pytest.raises(RecipeError, match='images'):
        refine(out, net, FAST['zeroq'].but(images=ImageSchedule(images=0)), steps=1)

def test_another_run_is_refused(tmp_path):
    net = tiny(); out = compress(net, X, weight_bits=4)
    refine(out, net, FAST['gdfq'], steps=3, checkpoint=tmp_path/'s')
    for kw in (dict(seed=1), dict(steps=4), dict(method=FAST['transfer'])):
        with pytest.raises(FileError, match='another run'):
            refine(out, net, **(dict(method=FAST['gdfq'], steps=3, checkpoint=tmp_path/'s') | kw))

@pytest.mark.parametrize('change',
    [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(),
    lambda m: m.to(memory_format=torch.channels_last), lambda m: nn.DataParallel(m), lambda m: m.train()],
    ids=['half', 'bfloat16', 'double', 'channels last', 'DataParallel', 'training'])
@pytest.mark.parametrize('method', ['gdfq', 'streams'])
def test_as_it_came(change, method):
    net = change(tiny()); dtype = next(net.parameters()).dtype
    out = compress(net, X.to(dtype), weight_bits=4, pruning_ratio=.3)
    r = refine(out, net, FAST[method], steps=3)
    assert next(r.model.parameters()).dtype == dtype and r.model.training == out.model.training

def test_bad_input():
    net = tiny(); out = compress(net, X, weight_bits=4)
    broken = copy.deepcopy(net); broken[0].weight.data[0, 0, 0, 0] = float('nan')
    with pytest.raises(NonFiniteError): refine(out, broken, steps=1)
    with pytest.raises(UnsupportedError, match='classes'): refine(out, tiny(size=5), steps=1)
    for bad in ('zero-q', 3, None):
        with pytest.raises(RecipeError): refine(out, net, bad, steps=1)
    for m, bad in (('gdfq', 1.), ('transfer', .95), ('zeroq', 0.), ('gdfq', -.1), ('zeroq', 1.5)):
        with pytest.raises(RecipeError, match='share'): refine(out, net, FAST[m].but(share=bad), steps=1)
    for bad in (-1, 1.5, True):
        with pytest.raises(RecipeError): refine(out, net, steps=bad)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with pytest.raises(UnsupportedError, match='classifier'): refine(compress(body, X, weight_bits=4), body, steps=1)
    flat = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(ExampleInputError): refine(compress(flat, torch.zeros(1, 6), weight_bits=4), flat, steps=1)
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).eval()
    cut = compress(bare, X, pruning_ratio=.5)
    with pytest.raises(UnsupportedError, match='batch norm'): refine(cut, bare, ZeroQ(steps=1))
    assert any('no batch norm' in n for n in refine(cut, bare, FAST['transfer'], steps=2).report.notes)

def test_papers_defaults():
    g, t, z = GDFQ(), Transfer(), ZeroQ()
    assert (g.steps, g.batch, g.latent, g.lr_generator, g.norm_weight, g.lr_student, g.temperature,
        g.warmup*g.steps) == (400*200, 200, 100, 1e-3, .1, 1e-4, 20., 4*200)
    assert ((t.steps, t.batch, t.latent, t.lr_student, t.student_steps) == (500*50*5, 256, 256, .1, 5)
        and (z.images.steps, z.images.lr, z.steps) == (500, .5, 0))

def test_paper_schedules_run():
    net = tiny(); out = compress(net, X, weight_bits=4, activation_bits=4)
    for how in (GDFQ(batch=8, width=8, steps=120), Transfer(batch=8, width=8, steps=12, lr_student=1e-3),
            ZeroQ(images=ImageSchedule(images=8, steps=5))):
        assert refine(out, net, how).report.settings['refine']['method'] == type(how).__name__

def test_integers_outside(tmp_path):
    ort = pytest.importorskip('onnxruntime')
    net, (x, _) = digits_net(), digits('test')
    r = refine(compress(net, x[:1], weight_bits=8, activation_bits=8), net, FAST['gdfq'].but(lr_student=1e-4), steps=10)
    r.export(tmp_path/'a.onnx', x[:1])
    session = ort.InferenceSession(str(tmp_path/'a.onnx'), providers=['CPUExecutionProvider'])
    with torch.no_grad(): want = r.model(x).argmax(1)
    got = torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]).argmax(1)
    assert (got != want).float().mean() < .01

@pytest.mark.slow
@pytest.mark.parametrize('method', ['gdfq', 'transfer'])
def test_a_damaged_network_comes_back(method):
    net, (x, y) = digits_net(), digits('test')
    out = compress(net, x[:1], pruning_ratio=.7, recipe='prune')
    assert accuracy(refine(out, net, method, steps=200).model, x, y) > accuracy(out.model, x, y)+50
