"""Compress random networks, and demand of each the right result or an error with a type.

    python fuzz/run.py                    a thousand networks, ten thousand damaged files of each form
    python fuzz/run.py --n 50 --seed 7    fifty others
    python fuzz/run.py --plan "(2, 'tensor', ('mean', 0), (('conv', 1),))"    one, as it was printed
"""
import argparse, ast, contextlib, importlib.util, os, random, resource, signal, sys, tempfile, time, traceback, warnings
from collections import Counter
from functools import partial
from multiprocessing import get_context
from pathlib import Path
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
import torch
from torch.utils._pytree import tree_map
from udfc_nb import UDFCError, compress, load
from known import KNOWN
from networks import build, draw_plan, fresh_example, settled, shortened
from oracle import Fault, call, cast, compare, demand, same_numbers
from arguments import draw_arguments

SECONDS, MEMORY = 120, 2*2**30 # of one check, and how much memory it may add
RECIPES = ('best', 'fast', 'field', 'paper')


class Late(BaseException): "No package takes it for a fault of the network's."


# ---- what must hold

def snapshot(net):
    "Everything about a network that compressing it must not change."
    hooks = lambda m: {k: list(v) for k, v in vars(m).items() if k.endswith('_hooks') and isinstance(v, dict)}
    plain = lambda v: v if isinstance(v, (int, float, str, bool, tuple, type(None))) else id(v)
    return ({n: (t.clone(), id(t), t.dtype, t.stride(), t.requires_grad)
        for n, t in [*net.named_parameters(), *net.named_buffers()]},
        {n: {k: plain(v) for k, v in vars(m).items()} for n, m in net.named_modules()},
        {n: hooks(m) for n, m in net.named_modules()}, torch.get_rng_state())

def untouched(net, before):
    now = snapshot(net)
    demand(now[0].keys() == before[0].keys(), 'the network has other tensors')
    for n, (t, *rest) in before[0].items():
        demand(torch.equal(t, now[0][n][0]) and list(now[0][n][1:]) == rest, f'{n} of the network was changed')
    for n, d in before[1].items():
        other = [k for k in {*d, *now[1][n]} if d.get(k) != now[1][n].get(k)]
        demand(not other, f'{n}.{other} of the network was changed')
    demand(now[2] == before[2], 'hooks of the network were changed')
    demand(torch.equal(now[3], before[3]), 'random numbers were drawn from the global generator')

def same_bits(a, b):
    mine, its = a.model.state_dict(), b.model.state_dict()
    demand(mine.keys() == its.keys(), 'the same call gives other tensors')
    for n, t in mine.items():
        demand(not isinstance(t, torch.Tensor) or torch.equal(t, its[n]), f'the same call gives other numbers in {n}')

def finite(outs): return all(torch.isfinite(t).all() for t in outs if t.is_floating_point())

FILES = True

def loads_again(out, net, example):
    "Saved, loaded, and run: the same numbers."
    if not FILES: return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'small.safetensors'
        out.save(path)
        again = load(path, net)
    a, b = call(out.model.eval(), example), call(again, example)
    demand(all(torch.equal(x, y) for x, y in zip(a, b)), 'what was saved and loaded gives other outputs')

@contextlib.contextmanager
def bounded():
    "Within time and memory. Seconds of the processor, so that a busy machine is no fault, and many more by the clock."
    def late(*_): raise Late(f'more than {SECONDS} seconds')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 30*SECONDS)}
    old = {s: signal.signal(s, late) for s in limits}
    for timer, seconds in limits.values(): signal.setitimer(timer, seconds)
    try: yield
    finally:
        for timer, _ in limits.values(): signal.setitimer(timer, 0)
        for s, handler in old.items(): signal.signal(s, handler)
    demand((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*1024 < MEMORY, f'more than {MEMORY>>30} GiB')


# ---- one network

def examples_of(plan):
    "Fresh inputs that the original takes."
    fresh = [fresh_example(plan, 1), fresh_example(plan, 2, 2)]
    def runs(e):
        try: return finite(call(build(plan)[0], e))
        except Exception: return False
    return [e for e in fresh if runs(e)]

def check_cut(plan, ratio=.4, sites='all'):
    "The cut network is the original with some inputs at zero. Gives what happened, in a word, and how much went."
    try: usable = finite(call(*build(plan)))
    except Exception as e: return f'unusable: {type(e).__name__}: {str(e)[:60]}', None
    if not usable: return 'unusable: not finite', None
    net, example = build(plan)
    before = snapshot(net)
    try: out = compress(net, example, recipe='prune', pruning_ratio=ratio, sites=sites)
    except UDFCError as e: untouched(net, before); return f'refused: {type(e).__name__}: {str(e)[:100]}', None
    untouched(net, before); same_numbers(net, out.model)
    same_bits(out, compress(net, example, recipe='prune', pruning_ratio=ratio, sites=sites))
    late, original, t = None, build(plan)[0], out.report.totals
    try: loads_again(out, net, example)
    except Exception as e: late = e
    compare(original, out, examples_of(plan))
    if late is not None: raise late
    return ('cut' if t['params'] < t['params_before'] else 'whole'), 1-t['params']/max(t['params_before'], 1)

def known(name):
    torch.manual_seed(0)
    net, example = KNOWN[name]()
    return settled(net).eval(), example

def check_known(name, sites='all'):
    "The same of a network that is built as a library's."
    net, example = known(name)
    before = snapshot(net)
    out = compress(net, example, recipe='prune', pruning_ratio=.4, sites=sites)
    untouched(net, before); same_numbers(net, out.model)
    loads_again(out, net, example)
    fresh = tree_map(lambda t: torch.randn_like(t) if isinstance(t, torch.Tensor) and t.is_floating_point() else t,
        example)
    compare(known(name)[0], out, [fresh])
    return out

def check_recipe(plan, seed):
    "Another recipe, at bits too: finite, of the right shape, again the same, saved and loaded."
    r = random.Random(seed)
    try: want = call(*build(plan))
    except Exception: return 'unusable'
    if not finite(want): return 'unusable'
    net, example = build(plan)
    before = snapshot(net)
    kw = dict(recipe=r.choice(RECIPES), pruning_ratio=r.choice([0., .3, .5]),
        weight_bits=r.choice([None, 2, 3, 4, 4, 6, 8, 4.5]), activation_bits=r.choice([None, None, None, 8, 4]),
        sites=r.choice(['own', 'all']))
    try: out = compress(net, example, **kw)
    except UDFCError as e: untouched(net, before); return f'refused: {type(e).__name__}: {str(e)[:100]}'
    except Exception as e: raise Fault(f'{kw}: {type(e).__name__}: {e}') from e
    try:
        untouched(net, before)
        same_bits(out, compress(net, example, **kw)) # before it runs, which may count
        got = call(out.model.eval(), example)
        demand([t.shape for t in got] == [t.shape for t in want] and finite(got),
            'outputs that are not finite or of other shapes')
        demand(finite(out.model.state_dict().values()), 'parameters that are not finite')
        for e in examples_of(plan): demand(finite(call(out.model, e)), 'not finite on another example')
        loads_again(out, net, example)
        str(out.report); out.report.to_json()
    except UDFCError as e: raise Fault(f'{kw}: {type(e).__name__}: {e}') from e
    except Fault as e: raise Fault(f'{kw}: {e}') from e
    return 'done'

def check_arguments(plan, seed):
    "Random arguments: a sound result, or an error with a type."
    r = random.Random(seed)
    try: want = call(*build(plan))
    except Exception: return 'unusable'
    net, example = build(plan)
    dtype = r.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    net.to(dtype)
    if dtype is not torch.float32: example = cast(example, dtype)
    given, wrong = draw_arguments(r, net)
    if wrong is None and r.random() < .15:
        wrong, example = ('example_inputs',
            r.choice([None, 'x', 3, torch.randn(2, 77, 5, 5), torch.randn(3), (), {}, [torch.randn(1)],
            torch.zeros(0, 3, 8, 6)]))
    before = snapshot(net)
    text = f'{dtype}, {given}, {wrong}'
    try: out = compress(net, example, **given)
    except UDFCError as e:
        demand(len(str(e)) > 20, f'{text}: says only {e}')
        untouched(net, before)
        return f'{"refused" if wrong is None else "bad"}: {type(e).__name__}: {str(e)[:100]}'
    except Exception as e: raise Fault(f'{text}: {type(e).__name__}: {e}') from e
    try:
        untouched(net, before)
        if wrong == 'example_inputs': return 'bad, taken'
        try: usable = finite(call(build(plan)[0].to(dtype), example))
        except Exception: return 'done, not run' # half precision that this machine cannot compute
        got = call(out.model.eval(), example)
        demand(all(a.dtype == p.dtype for a, p in zip(out.model.parameters(), net.parameters())), 'another type')
        demand([t.shape for t in got] == [t.shape for t in want], 'outputs of other shapes')
        demand(not usable or finite(got), 'not finite')
    except UDFCError as e: raise Fault(f'{text}: {type(e).__name__}: {e}') from e
    except Fault as e: raise Fault(f'{text}: {e}') from e
    return 'done' if wrong is None else f'taken: {wrong}={given[wrong]!r:.40}'

CHECKS = dict(cut=lambda plan, seed: check_cut(plan, *((.4, 'all') if seed % 2 else (.3, 'own')))[0],
    recipe=check_recipe, arguments=check_arguments)

def failure(plan, what, seed):
    "What is wrong with a network; None if nothing is. And what happened."
    return attempted(CHECKS[what], plan, seed)

def attempted(check, *args):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with bounded(): return None, check(*args)
        except (Fault, Late) as e: return f'{type(e).__name__}: {e}'[:600], 'fault'
        except Exception as e:
            return f'{type(e).__name__}: {e}\n{"".join(traceback.format_tb(e.__traceback__)[-3:])}'[:1500], 'fault'

def shorten(plan, what, seed, kind, seconds=60):
    "The shortest plan found that still fails in that way."
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        for new in shortened(plan):
            if time.monotonic() > end: break
            try: now, _ = failure(new, what, seed)
            except Exception: continue
            if now is not None and now.split(':')[0] == kind: plan = new; break
        else: return plan
    return plan


# ---- many

def tried(k, checks, short, verbose):
    "One network by its seed: what happened in each check, which failed, and what to print."
    counts, failed, said, plan = {w: Counter() for w in checks}, [], [], draw_plan(random.Random(k))
    for what in checks:
        wrong, happened = failure(plan, what, k)
        counts[what][happened if verbose else ': '.join(happened.split(': ')[:2]) if happened[0] in 'rb'
            else happened.split(':')[0]] += 1
        if wrong is None: continue
        shortest = shorten(plan, what, k, wrong.split(':')[0]) if short else plan
        said.append(f'---- {what}, seed {k}: {wrong}\n     plan: {shortest!r}')
        failed.append((what, k))
    return counts, failed, said

def _alone():
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')

def main(n=1000, seed=0, checks=tuple(CHECKS), short=True, verbose=False, workers=1):
    "Tries networks, prints what fails, and counts. Gives the number of failures."
    start, job = time.monotonic(), partial(tried, checks=checks, short=short, verbose=verbose)
    with contextlib.ExitStack() as stack:
        run = map
        if workers > 1: # fresh processes after fifty networks: what one leaves behind is not there for all others
            run = stack.enter_context(get_context('spawn').Pool(workers, _alone, maxtasksperchild=50)).imap
        counts, failed = {w: Counter() for w in checks}, []
        for k, (c, f, said) in enumerate(run(job, range(seed, seed+n)), 1):
            failed += f
            for w in checks: counts[w].update(c[w])
            for line in said: print(line, flush=True)
            if k % 50 == 0: print(f'{k} of {n}, {len(failed)} failed', file=sys.stderr, flush=True)
    print(f'\n{n} networks from seed {seed}, {time.monotonic()-start:.0f} s')
    for what in checks:
        print(f'{what}:')
        for h, c in counts[what].most_common(): print(f'  {c:6}  {h}')
    print('failed:', failed or 'none')
    return len(failed)

def libraries():
    "Networks built as public libraries build theirs. Gives the number of failures."
    wrong = {n: w for n in KNOWN if (w := attempted(check_known, n)[0]) is not None}
    for n, w in wrong.items(): print(f'---- {n}: {w}')
    print(f'{len(KNOWN)-len(wrong)} of {len(KNOWN)} networks as libraries have them are right')
    return len(wrong)

def others(n, seed):
    "What else there is to fuzz: files."
    for name in ('files',):
        if not (HERE/f'{name}.py').exists(): continue
        spec = importlib.util.spec_from_file_location(f'fuzz_{name}', HERE/f'{name}.py')
        spec.loader.exec_module(m := importlib.util.module_from_spec(spec))
        yield name, m.main(n, seed)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1000)
    p.add_argument('--seed', type=int, default=0); p.add_argument('--plan')
    p.add_argument('--checks', nargs='+', choices=CHECKS, default=list(CHECKS))
    p.add_argument('--as-drawn', action='store_true', help='do not shorten what fails')
    p.add_argument('--verbose', action='store_true')
    p.add_argument('--workers', type=int, default=os.cpu_count(), help='so many networks at a time, one thread each')
    p.add_argument('--no-files', action='store_true', help='do not save and load')
    a = p.parse_args()
    torch.set_num_threads(1)
    FILES = not a.no_files
    if a.plan:
        for what in a.checks: print(what, *failure(ast.literal_eval(a.plan), what, a.seed))
        sys.exit()
    whole = len(a.checks) == len(CHECKS)
    bad = libraries() if whole else 0
    bad += main(a.n, a.seed, a.checks, not a.as_drawn, a.verbose, 1 if a.no_files else a.workers)
    if whole: bad += sum(bool(found) for _, found in others(10*a.n, a.seed))
    sys.exit(bool(bad))
