"""Writers that are killed (kill -9) at random moments. `python fuzz/torture.py [N] [SEED]` kills N, a third each in
`save`, in `udfc compress` and in `refine` with a checkpoint, and prints what lay there afterwards.

Right is: a file that loads, the old one or the new one, after every kill; a refinement that goes on from whatever is
there and ends as one that nobody killed, bit for bit; and no more temporary files than the last writer left. The
writers are forked from one process, in which everything is imported; it is this script's own, because a fork of one in
which autograd has threads, as one of tests may, cannot refine. A writer that ends by itself says why."""
import os, random, signal, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
import torch
from udfc_nb import compress, load
from udfc_nb.app.cli import main as udfc
from udfc_nb.training import loop
from udfc_nb.training.refine import refine
from udfc_nb.training.schedules import METHODS

sys.path.insert(0, str(Path(__file__).parent))
from files import X, network

def fork(work, told):
    "A process that does this, quietly, over and over, until it is killed; what went wrong is written to `told`."
    if pid := os.fork(): return pid
    quiet = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2): os.dup2(quiet, fd)
    torch.set_num_threads(1)
    try:
        while True: work()
    except BaseException as e: os.write(told, f'{type(e).__name__}: {str(e)[:200]}'.encode())
    finally: os._exit(1)

def kill_after(work, seconds):
    "Gives '', or how it had ended by itself; `work` may end its process with 0."
    said, told = os.pipe(); pid = fork(work, told); os.close(told); time.sleep(seconds)
    os.kill(pid, signal.SIGKILL); code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(said, 'rb') as f: why = f.read().decode(errors='replace')
    return '' if code in (0, -signal.SIGKILL) else f'! ended by itself, {code} {why}'

def duration(work):
    began = time.perf_counter(); work()
    return time.perf_counter()-began

def same(a, b): return all(torch.equal(a[k], t) for k, t in b.items())

def refined(rng, n, net, out, folder):
    "Kills refinements that write checkpoints, and ends them; gives a word for each."
    how, path = METHODS['streams'].but(batch=4, pool=8), Path(folder)/'checkpoint'
    end = lambda **kw: refine(out, net, how, steps=24, **kw).model.state_dict()
    before, loop.KEEP_EVERY = (loop.KEEP_EVERY, torch.get_num_threads()), 1 # a checkpoint every fourth step
    torch.set_num_threads(1) # as who is killed: two threads add in another order
    try:
        whole, took = end(), duration(end)
        for _ in range(n):
            path.unlink(missing_ok=True)
            ended = kill_after(lambda: end(checkpoint=path) and os._exit(0), rng.uniform(0, took))
            word = 'gone on' if path.exists() else 'begun again'
            try: word = word if same(whole, end(checkpoint=path)) else '! another network'
            except Exception as e: word = f'! {type(e).__name__}: {str(e)[:80]}'
            yield ended or word
    finally: loop.KEEP_EVERY = before[0]; torch.set_num_threads(before[1])

def main(n=200, seed=0, show=print):
    "Kills `n` writers; gives the number of wrong ends."
    rng, wrong, words = random.Random(seed), 0, Counter()
    warnings.simplefilter('ignore'); sys.path.insert(0, str(Path(__file__).parent))
    net = network()
    outs = [compress(net, X, weight_bits=b, pruning_ratio=r, recipe='prune', verify=False)
        for b, r in ((4, .3), (8, 0.))]
    states = [o.model.state_dict() for o in outs]
    def which(path):
        try: state = load(path, net).state_dict()
        except Exception as e: return f'! {type(e).__name__}: {str(e)[:80]}'
        return next((w for w, s in zip(('old', 'new'), states) if same(s, state)), '! another network')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'a.safetensors'
        argv = ['compress', 'files:network', '--input-shape', '2,3,12,12', '--bits', '8', '--recipe', 'prune',
            '--no-verify', '--quiet', '--output', str(path), '--report', str(path.with_suffix('.json'))]
        jobs = dict(save=lambda: outs[1].save(path), command=lambda: udfc(argv))
        for what, work in jobs.items():
            outs[0].save(path); path.with_suffix('.json').unlink(missing_ok=True)
            back = sys.stdout; sys.stdout = open(os.devnull, 'w')
            try: took = duration(work)
            finally: sys.stdout.close(); sys.stdout = back
            for _ in range(n//3):
                outs[0].save(path)
                ended = kill_after(work, rng.uniform(0, 2*took)+.005)
                word = which(path)
                left = [p.name for p in Path(folder).iterdir() if p.name.startswith('.')]
                if ended: word = ended
                elif len(left) > 2: word = f'! {len(left)} temporary files'
                elif path.with_suffix('.json').exists():
                    from udfc_nb.run.report import report_from_json
                    report_from_json(path.with_suffix('.json').read_text())
                words[f'{what}: {word}'] += 1; wrong += word[0] == '!'
        for word in refined(rng, n-2*(n//3), net, outs[0], folder):
            words[f'refine: {word}'] += 1; wrong += word[0] == '!'
    show(f'{n} writers killed: '+', '.join(f'{k} {v}' for k, v in sorted(words.items()))+f'; wrong: {wrong}')
    return wrong

if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3])) > 0)
