"""Writers that are killed (kill -9) at random moments. `python fuzz/torture.py [N] [SEED]` kills N, half in `save`
and half in `udfc compress`, and prints what lay there afterwards.

Right is: a file that loads, the old one or the new one, after every kill; and no more temporary files than the last
writer left. The writers are forked from one process, in which everything is imported."""
import os, random, signal, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
import torch
from udfc_nb import compress, load
from udfc_nb.app.cli import main as udfc

sys.path.insert(0, str(Path(__file__).parent))
from files import X, network

def fork(work):
    "A process that does this, quietly, over and over, until it is killed."
    if pid := os.fork(): return pid
    quiet = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2): os.dup2(quiet, fd)
    torch.set_num_threads(1)
    try:
        while True: work()
    finally: os._exit(1)

def kill_after(work, seconds):
    pid = fork(work); time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) # -9, unless it had ended by itself

def duration(work):
    began = time.perf_counter(); work()
    return time.perf_counter()-began

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
        return next((w for w, s in zip(('old', 'new'), states) if all(torch.equal(s[k], t) for k, t in state.items())),
            '! another network')
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
            for _ in range(n//2):
                outs[0].save(path)
                ended = kill_after(work, rng.uniform(0, 2*took)+.005)
                word = which(path)
                left = [p.name for p in Path(folder).iterdir() if p.name.startswith('.')]
                if ended != -signal.SIGKILL: word = f'! ended by itself, {ended}'
                elif len(left) > 2: word = f'! {len(left)} temporary files'
                elif path.with_suffix('.json').exists():
                    from udfc_nb.run.report import report_from_json
                    report_from_json(path.with_suffix('.json').read_text())
                words[f'{what}: {word}'] += 1; wrong += word[0] == '!'
    show(f'{n} writers killed: '+', '.join(f'{k} {v}' for k, v in sorted(words.items()))+f'; wrong: {wrong}')
    return wrong

if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3])) > 0)
