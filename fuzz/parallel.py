"""Eight threads, four forked workers and one spawned compress at the same time, for a minute or as long as one
likes, and must find
what one finds alone, bit for bit: python fuzz/parallel.py [seconds]. A forked worker has one thread, as it must
where its parent has used others."""
import hashlib, itertools, multiprocessing, sys, threading, time, traceback
import torch
from torch import nn
from udfc_nb import compress

def network(kind):
    torch.manual_seed(kind)
    C, N, R = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
    net = [nn.Sequential(C(3, 8, 3, padding=1), N(8), R(), C(8, 12, 3, padding=1), R(), C(12, 4, 1)),
        nn.Sequential(C(3, 12, 3), N(12), R(), C(12, 12, 3, groups=12), N(12), nn.ReLU6(), C(12, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(3*64, 24), R(), nn.Linear(24, 16), nn.Tanh(),
        nn.Linear(16, 4))][kind].eval()
    for m in net.modules():
        if isinstance(m, N): m.running_mean.normal_(0, .1); m.running_var.uniform_(.2, 1.)
    return net, torch.randn(2, 3, 8, 8)

TASKS = [(kind, dict(recipe=recipe, pruning_ratio=.4, weight_bits=bits, activation_bits=8)) for kind in range(3)
    for recipe, bits in (('prune', 4), ('fast', 8), ('best', 4), ('dfq', 8))]
NETS = [network(k) for k in range(3)]

def mark(task):
    "A digest of all that a task gives; what goes wrong, as text."
    kind, settings = TASKS[task]
    try: out = compress(*NETS[kind], **settings)
    except Exception: return traceback.format_exc()
    h = hashlib.sha256(repr((out.report.rows, out.report.judged, out.report.candidates)).encode())
    for t in [*out.model.state_dict().values(), *(t for q in out.codes.values() for t in q[:3])]:
        h.update(t.numpy().tobytes())
    return h.hexdigest()

def work(until, first, say):
    "Task after task, beginning at another one in each worker."
    for task in itertools.islice(itertools.cycle(range(len(TASKS))), first, None):
        if time.time() > until: return
        say((task, mark(task)))

def worker(until, first, to):
    torch.set_num_threads(1)
    work(until, first, to.send)
    to.close()

def main(seconds=60., threads=8, forked=4, spawned=1):
    "Returns how many answers were other than alone."
    torch.set_num_threads(1) # the last bits of a sum hang on the number of threads, so it is the same everywhere
    alone, found, until = [mark(t) for t in range(len(TASKS))], [], time.time()+seconds
    if any('Traceback' in m for m in alone): print(*(m for m in alone if 'Traceback' in m)); return len(alone)
    ends = []
    for i, way in enumerate(['fork']*forked+['spawn']*spawned):
        context = multiprocessing.get_context(way)
        get, to = context.Pipe(False)
        p = context.Process(target=worker, args=(until, 3*i, to)); p.start(); to.close(); ends.append((get, p))
    def listen(get):
        try:
            while True: found.append(get.recv())
        except EOFError: pass
    running = ([threading.Thread(target=work, args=(until, 2*i, found.append))
        for i in range(threads)]+[threading.Thread(target=listen, args=(get,)) for get, _ in ends])
    for t in running: t.start()
    for t in running: t.join()
    for _, p in ends: p.join()
    wrong = ([(t, m) for t, m in found if m != alone[t]]+[('a worker ended with', p.exitcode) for _, p in ends
        if p.exitcode])
    for w in wrong[:5]: print(*w)
    print(f'{len(found)} answers of {threads} threads, {forked} forked workers and {spawned} spawned in {seconds:.0f} '
        f's: {len(wrong)} are others than alone')
    return len(wrong)

if __name__ == '__main__': sys.exit(main(*map(float, sys.argv[1:2])) > 0)
