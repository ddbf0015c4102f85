"""Damaged and forged files of each form: packed (versions 1 and 2), state of `refine`, recipe, report.
`python fuzz/files.py [N] [SEED]` reads N of each and prints what came of them.

Each is read in a process of its own batch, with two seconds of the processor, and its largest memory is noted. Right
is: a typed error; or, where the damage is no damage or a new checksum was made,
a network that runs, whose outputs have the architecture's shape and whose numbers are finite."""
import hashlib, json, os, random, signal, struct, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
import torch, torch.nn as nn
from safetensors.torch import load as from_bytes, save as to_bytes
from udfc_nb import compress, load
from udfc_nb.errors import FileError, RecipeError
from udfc_nb.files.format import _checksum, read_file
from udfc_nb.recipes.recipe import RECIPES, Recipe, recipe_from_json
from udfc_nb.run.report import report_from_json
from udfc_nb.training.learner import Learner, digest
from udfc_nb.training.schedules import get_schedule
from udfc_nb.training.state import FORMAT, read_state, state_of, write_state

# of the processor for a file, and thirty times as many on the clock; files in a process; megabytes that Python and its
# allocator may take beside tensors
SECONDS, BATCH, SLACK = 2, 250, 16


# ---- what someone who knows the format can write

def parts(data):
    "The table in front, and the bytes behind it."
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(bytes(data[8:8+length])), bytes(data[8+length:])

def join(table, body):
    text = json.dumps(table, separators=(',', ':')).encode()
    return struct.pack('<Q', len(text))+text+body

def sign(table, body):
    "A file with the checksum that fits."
    texts = table.get('__metadata__')
    if not isinstance(texts, dict): return join(table, body)
    if texts.get('format') == FORMAT['format']:
        meta = {k: v for k, v in texts.items() if k != 'sha256'}
        told = digest(from_bytes(join(table, body)), json.dumps(meta, sort_keys=True))
        return join(table | dict(__metadata__=meta | dict(sha256=told)), body)
    if texts.get('version') == '1':
        told = _checksum(from_bytes(join(table, body)), texts)
        return join(table | dict(__metadata__=texts | dict(sha256=told)), body)
    blank = join(table | dict(__metadata__=texts | dict(sha256='0'*64)), body)
    return blank.replace(b'"sha256":"'+b'0'*64, b'"sha256":"'+hashlib.sha256(blank).hexdigest().encode(), 1)

def with_texts(data, **changes):
    "The same file with other texts."
    table, body = parts(data)
    return sign(table | dict(__metadata__=table['__metadata__'] | changes), body)

def with_tensors(data, change):
    "The same file with other tensors; `change` takes and gives a dict."
    tensors = {n: t.contiguous() for n, t in change(from_bytes(bytes(data))).items()}
    return sign(*parts(to_bytes(tensors, parts(data)[0]['__metadata__'])))

def header_of(data):
    "What the text says about the tensors, in the form of either version."
    texts = parts(data)[0]['__metadata__']
    return dict(coded=json.loads(texts['description'])) if texts['version'] == '1' else json.loads(texts['header'])

def with_header(data, change):
    "The same file with another header (version 1: description); `change` takes and gives what `header_of` gives."
    new = change(header_of(data))
    if parts(data)[0]['__metadata__']['version'] == '2': return with_texts(data, header=json.dumps(new))
    return with_texts(data, description=json.dumps(new['coded'] if isinstance(new, dict) and 'coded' in new else new))

def layer(data, name, **changes):
    "The same file with other fields in the description of a layer."
    key = name if parts(data)[0]['__metadata__']['version'] == '1' else f'{name}.weight'
    return with_header(data, lambda h: h | dict(coded=h['coded'] | {key: h['coded'][key] | changes}))

def as_version_1(path):
    "The file as the first version of the package would have written it."
    tensors, header, texts = read_file(path)
    coded = {n.removesuffix('.weight'): {k: c[k] for k in ('bits', 'shape', 'low', 'deflated', 'zero')}
        for n, c in header['coded'].items()}
    for n, of in header['same'].items():
        if of in tensors: tensors[n] = tensors[of].clone()
        else:
            tensors |= {f'{n}.{k}': tensors[f'{of}.{k}'].clone() for k in ('codes', 'scale')}
            coded[n.removesuffix('.weight')] = coded[of.removesuffix('.weight')]
    meta = dict(format='udfc_nb', version='1', written_by=texts['written_by'], recipe=texts['recipe'],
        description=json.dumps(coded, separators=(',', ':')))
    for k in ('inputs', 'beside'):
        if header[k]: meta[k] = json.dumps(header[k])
    return to_bytes({n: t.contiguous() for n, t in tensors.items()}, meta | dict(sha256=_checksum(tensors, meta)))


# ---- damage

def damaged(data, rng):
    "Truncated, flipped, overwritten, inserted, removed; nobody mends the checksum."
    n, i, k, kind = len(data), rng.randrange(len(data)), rng.randrange(1, 40), rng.randrange(8)
    if kind == 0: return data[:i]
    if kind == 1: return data+rng.randbytes(k)
    if kind == 2: return data[:i]+rng.randbytes(k)+data[i+k:]
    if kind == 3: return data[:i]+rng.randbytes(k)+data[i:]
    if kind == 4: return data[:i]+data[i+k:]
    if kind == 5:
        return struct.pack('<Q', rng.choice([0, 1, n, n-8, 2**31, 2**40, 2**63, 2**64-1, rng.randrange(2*n)]))+data[8:]
    return data[:i]+bytes([data[i] ^ 1 << rng.randrange(8)])+data[i+1:]

STRANGE = [0, -1, 1, 3, 17, 2**31, 2**62, 2**63, 2**64, 10**30, -2**70, 10**400, 1e308, float('nan'), float('inf'),
    True, None, '', 'x', [], {}, [0], [[]], {'bits': 4}]

def mutate(value, rng):
    "A JSON value with one place changed, removed or repeated."
    if isinstance(value, dict) and value and rng.random() < .9:
        k, v, act = rng.choice(list(value)), dict(value), rng.randrange(6)
        if act == 0: del v[k]
        elif act == 1: v[rng.choice(['', 'x', k+'.x', rng.choice(list(value))])] = v[k]
        else: v[k] = mutate(v[k], rng)
        return v
    if isinstance(value, list) and value and rng.random() < .8:
        v, i, act = list(value), rng.randrange(len(value)), rng.randrange(5)
        if act == 0: del v[i]
        elif act == 1: v.insert(i, v[i])
        else: v[i] = mutate(v[i], rng)
        return v
    if type(value) is int and rng.random() < .5: return value+rng.choice([-1, 1, 8, 2**20])
    return rng.choice(STRANGE)

def cut(data, rng):
    "One module's tensors cut to fewer rows or columns, all of them in the same way: each is right for itself."
    tensors, h = from_bytes(bytes(data)), header_of(data)
    owner = rng.choice(sorted({n.rpartition('.')[0].removesuffix('.weight') for n in tensors}))
    mine = [n for n in tensors if n.startswith(f'{owner}.') and tensors[n].dim()
        and not n.endswith(('.codes', '.scale'))]
    rows = min((len(tensors[n]) for n in mine), default=1)
    k = rng.randrange(1, rows) if rows > 1 else 1
    new = {n: t[:k] if n in mine and len(t) == rows else t for n, t in tensors.items()}
    out = with_tensors(data, lambda _: new)
    return with_header(out, lambda h: {k: v for k, v in h.items() if k != 'example'}) if rng.random() < .5 else out

def forged(data, rng):
    "Damage with a checksum that fits: what stands behind it is all there is to refuse it."
    kind = rng.randrange(6)
    try:
        if kind < 2: return with_header(data, lambda h: mutate(h, rng))
        if kind == 2: return cut(data, rng)
        table, body = parts(data)
        if kind == 3:
            return sign({k: mutate(v, rng) if k != '__metadata__' and rng.random() < .1 else v
                for k, v in table.items()}, body)
        if kind == 4: return sign(table | dict(__metadata__=mutate(table['__metadata__'], rng)), body)
        body = bytearray(body)
        for _ in range(rng.randrange(1, 9)): body[rng.randrange(len(body))] = rng.randrange(256)
        return sign(table, bytes(body))
    except Exception: return damaged(data, rng) # the library cannot read what was made, so it cannot be signed


# ---- reading

def network():
    "Every kind of module that a file can hold; no parameters that matter."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(), nn.ConvTranspose2d(8, 12, 2), nn.GroupNorm(3, 12), nn.ReLU(),
        nn.Conv2d(12, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()

X = torch.linspace(-1, 1, 2*3*12*12).reshape(2, 3, 12, 12)

def originals(folder):
    "Form → good bytes."
    out, folder = (compress(network(), X, pruning_ratio=.3, weight_bits=4, activation_bits=8, recipe='fast'),
        Path(folder))
    out.save(folder/'2'); few = compress(network(), X, weight_bits=8, recipe='prune')
    few.save(folder/'3', entropy=True)
    write_state(learner(), folder/'4')
    return {'state': (folder/'4').read_bytes(), 'packed 2': (folder/'2').read_bytes(),
        'packed 2, deflated': (folder/'3').read_bytes(),
        'packed 1': as_version_1(folder/'2'),
        'recipe': RECIPES['best'].to_json().encode(), 'report': out.report.to_json().encode()}

def read_packed(path, may_differ, good):
    "What came of a packed file: 'refused', 'same' or 'other'; AssertionError if that is wrong."
    try: net = load(path, network)
    except FileError as e: assert str(path) in str(e), 'the error does not name the file'; return 'refused'
    state = net.state_dict()
    if all(torch.equal(t, good[n]) for n, t in state.items()): return 'same'
    assert may_differ, 'a damaged file was read as another network'
    assert all(t.numel() <= n.numel()
        for t, n in zip(state.values(), network().state_dict().values())), 'larger than the architecture'
    assert all(t.isfinite().all() for t in state.values() if t.is_floating_point()), 'numbers that are not finite'
    with torch.no_grad(): assert net(X).shape == (2, 5), 'an output of another shape'
    return 'other'

def read_recipe(path, *_):
    try: r = recipe_from_json(Path(path).read_bytes().decode(errors='replace'))
    except RecipeError: return 'refused'
    assert isinstance(r, Recipe) and recipe_from_json(r.to_json()) == r
    return 'other'

def read_report(path, *_):
    try: r = report_from_json(Path(path).read_bytes().decode(errors='replace'))
    except FileError: return 'refused'
    assert (str(r) and r._repr_html_() and r.to_markdown() and r.to_csv() and r.compare(r)
        and report_from_json(r.to_json()).rows == r.rows)
    return 'other'

def learner():
    "A training that has not begun."
    out = compress(network(), X, weight_bits=4, recipe='prune', verify=False)
    return Learner(out, network(), get_schedule('gdfq', 2), 'cpu', 0, None)

BEGUN = {} # the training that states are read into, and what it is before

def begin():
    if not BEGUN: BEGUN['learner'] = learner(); BEGUN['before'] = state_of(BEGUN['learner'])[0]

def read_training(path, may_differ, _):
    "What came of a state; one that was refused must have changed nothing."
    same = lambda: all(torch.equal(t, BEGUN['before'][n]) for n, t in state_of(BEGUN['learner'])[0].items())
    try: read_state(BEGUN['learner'], path)
    except FileError:
        assert same(), 'a state that was refused has changed the training'
        return 'refused'
    if same(): return 'same'
    assert may_differ, 'a damaged state was read as another'
    student = BEGUN.pop('learner').student.state_dict(); BEGUN.clear()
    assert all(t.isfinite().all() for t in student.values() if t.is_floating_point()), 'numbers that are not finite'
    return 'other'

READERS = dict(recipe=read_recipe, report=read_report, state=read_training)
TEXTS = 'recipe', 'report' # which have no checksum

class Hang(Exception): pass

def _peak():
    "Resident memory, and the most there was since it was last asked for, in MB; zeros where the system does not say."
    try:
        said = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines()
            if line.startswith(('VmHWM', 'VmRSS')))
        Path('/proc/self/clear_refs').write_text('5')
        return [int(said[k].split()[0])/1024 for k in ('VmRSS', 'VmHWM')]
    except (OSError, KeyError): return 0., 0.

def judge(form, data, new_checksum, folder, good):
    "What came of one file, in a word; begins with '!' where it is wrong."
    path, read = folder/'damaged', READERS.get(form, read_packed)
    path.write_bytes(data)
    def stop(*_): raise Hang
    for s in (signal.SIGPROF, signal.SIGALRM): signal.signal(s, stop)
    allowed = SLACK+(2*len(data)+2*sum(t.numel()*t.element_size() for t in good.values()))/1e6
    before = _peak()[0]
    signal.setitimer(signal.ITIMER_PROF, SECONDS); signal.setitimer(signal.ITIMER_REAL, 30*SECONDS)
    try: word = read(path, new_checksum, good)
    except Hang: return '! hang'
    except AssertionError as e: return f'! {e or "wrong"}'
    except Exception as e: return f'! {type(e).__name__}: {str(e)[:80]}'
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(timer, 0)
    return f'! {_peak()[1]-before:.0f} MB' if _peak()[1]-before > allowed else word

def batch(form, data, new_checksum, seeds, folder, kept):
    "Outcomes of these seeds, from a process of its own."
    told, tell = os.pipe()
    if not (pid := os.fork()):
        os.close(told); torch.set_num_threads(1); warnings.simplefilter('ignore')
        good = {} if form in READERS else load(kept, network).state_dict()
        with os.fdopen(tell, 'w') as out:
            for seed in seeds:
                rng = random.Random(seed)
                if form == 'state': begin()
                if form in TEXTS and rng.random() < .5: made = json.dumps(mutate(json.loads(data), rng)).encode()
                else: made = (forged if new_checksum else damaged)(data, rng)
                print(json.dumps(judge(form, made, new_checksum, Path(folder), good)), file=out, flush=True)
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as lines: words = [json.loads(line) for line in lines]
    _, status = os.waitpid(pid, 0)
    return words+['! the process died']*(status != 0)

def main(n=10_000, seed=0, show=print):
    "Reads `n` damaged files of each form; gives the number of wrong ones."
    wrong, began = 0, time.perf_counter()
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as folder:
        for form, data in originals(folder).items():
            kept = Path(folder)/'good'; kept.write_bytes(data)
            for new in (False, True) if form not in TEXTS else (True,):
                count, words = n//2 if form not in TEXTS else n, Counter()
                for first in range(0, count, BATCH):
                    words.update(batch(form, data, new,
                        [f'{seed} {form} {new} {i}' for i in range(first, min(first+BATCH, count))], folder, kept))
                bad = {w: k for w, k in words.items() if w[0] == '!'}; wrong += sum(bad.values())
                checksum = '' if form in TEXTS else ', new checksum' if new else ', old checksum'
                show(f"{form}{checksum}: {count} files, {words['refused']} refused, {words['same']} read as they "
                    f"were, {words['other']} read as another; wrong: {bad or 0}")
    show(f'{wrong} wrong, {time.perf_counter()-began:.0f} s')
    return wrong

if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3])) > 0)
