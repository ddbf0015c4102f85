"The format as written down: another program reads it; the library reads it; and the other way round."
import json, subprocess, sys
from pathlib import Path
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from udfc_nb import compress, load
from udfc_nb.run.result import Compressed
from udfc_nb.errors import FileError
from udfc_nb.files.format import read_file
from udfc_nb.files.tensors import OneReading, checksum, read_tensors
sys.path.insert(0, str(Path(__file__).parents[1]/'fuzz'))
from files import damaged, join, network, parts
from test_files import Every, Holds, Tied, chain, same_bytes

TOP, x = Path(__file__).parents[1], torch.randn(2, 3, 12, 12)

def fifty():
    "The program that the book shows."
    cells = json.loads((TOP/'nbs'/'files/62_format.ipynb').read_text())['cells']
    code = next(''.join(c['source']) for c in cells if c['id'] == 'fifty')
    assert len([line for line in code.splitlines() if line.strip()]) <= 50
    return code

def test_without_the_package(tmp_path):
    """In a process where it cannot be imported: floats, codes of every kind, tied weights, buffers outside of the
    state dict, every type."""
    nets = dict(plain=chain(), tied=Tied().eval(), beside=Holds('not persistent').eval(), every=Every().eval())
    for name, net in nets.items():
        (Compressed(net, None) if name == 'every'
            else compress(net, x, weight_bits=5, recipe='prune')).save(tmp_path/name)
    small = compress(chain(), x, weight_bits=8, pruning_ratio=.25, recipe='fast')
    small.save(tmp_path/'half', dtype=torch.float16); small.save(tmp_path/'deflated', entropy=True)
    bad = bytearray((tmp_path/'plain').read_bytes()); bad[-9] ^= 1; (tmp_path/'bad').write_bytes(bad)
    run = f"""{fifty()}
import sys, torch
try: import udfc_nb; sys.exit('the package is there')
except ImportError: pass
torch.save({{n: read_packed(n) for n in {[*nets, 'half', 'deflated']}}}, 'out.pt')
try: read_packed('bad'); sys.exit('damage was not seen')
except ValueError: pass"""
    done = subprocess.run([sys.executable, '-I', '-c',
        f"import sys; sys.path = [p for p in sys.path if p != {str(TOP)!r}]; sys.meta_path = [f for f in "
        f"sys.meta_path if 'editable' not in str(f)]\n{run}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, state in torch.load(tmp_path/'out.pt').items():
        want = load(tmp_path/name, nets.get(name, chain())).state_dict()
        assert state.keys() == want.keys()
        for n, t in want.items(): assert same_bytes(state[n].to(t.dtype) if name == 'half' else state[n], t), (name, n)

def test_the_same_table_as_the_library(tmp_path):
    "What ours takes the library takes, with the same tensors; what the library refuses ours does, too."
    import random
    Compressed(network(), None).save(tmp_path/'a'); data, rng, taken = (tmp_path/'a').read_bytes(), random.Random(0), 0
    for _ in range(300):
        table, body = parts(data); name = rng.choice([*table][1:]); t = table[name]
        k = rng.choice(['dtype', 'shape', 'data_offsets'])
        t[k] = rng.choice([t[k], rng.choice(['F32', 'F64', 'I8', 'F9', 3]) if k == 'dtype'
            else [v+rng.choice([0, 0, 1, -1]) for v in t[k]]])
        (tmp_path/'b').write_bytes(made := rng.choice([join(table, body), damaged(data, rng)]))
        try: theirs = from_bytes(made)
        except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, TypeError): theirs = None
        try: ours = read_tensors(tmp_path/'b')[0]
        except FileError: continue
        taken += 1
        assert (theirs is not None and theirs.keys() == ours.keys()
            and all(torch.equal(theirs[n], t) for n, t in ours.items()))
    assert taken > 20

def test_the_same_network_is_the_same_file(tmp_path):
    out = compress(chain(), x, weight_bits=4)
    for name in 'ab': out.save(tmp_path/name)
    data = (tmp_path/'a').read_bytes()
    assert (tmp_path/'b').read_bytes() == data and from_bytes(data).keys() == read_file(tmp_path/'a')[0].keys()
    told = OneReading(tmp_path/'a').texts['sha256']
    assert checksum(data, told) == told
