"""Read the structure of every network of the zoo, each in a process of its own, and write a table.

    python zoo/run.py                          all networks, into zoo/table.csv
    python zoo/run.py --only 'tv:*'            those whose names match
    python zoo/run.py --sample 40              forty networks that cover the kinds, in about three minutes
    python zoo/run.py --build-only             only build them and run their forward

A row says what `find_sites(model, example_inputs, sites='all', verify=True)` did: 'ok'; 'refused' (a `UDFCError`);
'failed' (any other error); 'nobuild' (the network itself does not build or run); 'killed' (out of time or memory).
"""
import argparse
import copy
import csv
import fnmatch
import importlib.metadata
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = ('name', 'result', 'sites', 'share', 'difference', 'runs', 'seconds', 'forward', 'record', 'params', 'reason',
           'held')
RESULTS = ('ok', 'refused', 'failed', 'nobuild', 'killed')
PACKAGES = ('torch', 'torchvision', 'timm', 'pytorchcv', 'segmentation_models_pytorch', 'monai', 'kornia', 'basicsr',
            'facenet-pytorch', 'efficientnet-pytorch', 'torchxrayvision', 'onnx', 'onnx2torch', 'numpy')
# what is imported once, before the processes are forked
PRELOAD = {'timm': 'timm', 'timmfeat': 'timm', 'timmrep': 'timm', 'tv': 'torchvision', 'onnx': 'onnx2torch',
           'smp': 'segmentation_models_pytorch', 'monai': 'monai.networks.nets', 'pcv': 'pytorchcv.model_provider'}

# forty small networks: one of each kind
SAMPLE = '''
timm:resnet18 timm:mobilenetv2_035 timm:mobilenetv3_small_050 timm:efficientnet_b0 timm:tf_efficientnet_b0
timm:tf_efficientnetv2_b0 timm:densenet121 timm:mnasnet_small timm:regnety_002 timm:convnext_atto
timm:res2net50_14w_8s timm:mixnet_s timm:ghostnet_050 timm:vit_tiny_patch16_224 timm:vgg11_bn timm:repvgg_a0
timm:mobileone_s0 timm:mobilevit_xxs timm:hrnet_w18_small timm:cspresnet50 timm:seresnext26d_32x4d timm:resnest14d
timm:skresnet18 timm:starnet_s050 timm:inception_v3 timm:ese_vovnet19b_slim timm:edgenext_xx_small
tv:swin_t tv:googlenet tv:squeezenet1_1 tv:shufflenet_v2_x0_5 tv:mobilenet_v3_small tv:fcn_resnet50
tv:deeplabv3_mobilenet_v3_large tv:lraspp_mobilenet_v3_large tv:ssdlite320_mobilenet_v3_large
tv:fasterrcnn_mobilenet_v3_large_320_fpn.backbone tv:r3d_18 tv:raft_small timm:test_nfnet
'''.split()


# ---- one network, in a process of its own

def first_line(error: BaseException) -> str:
    """The type of an error and its first line."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'[:200]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or 'allocate memory' in text or 'bad_alloc' in text or 'errno 12' in text


def tensors(out: object) -> list:
    """All tensors in what a network returns."""
    import torch
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, dict):
        out = list(out.values())
    elif not isinstance(out, (list, tuple)) and hasattr(out, '__dict__'):
        out = list(vars(out).values())
    return [t for o in out for t in tensors(o)] if isinstance(out, (list, tuple)) else []


def build(name: str, settled: bool = False) -> tuple[dict, object, tuple]:
    """Build a network and time its forward: what is known so far, the network, its inputs."""
    import torch
    from networks import NETWORKS, settle
    model, inputs = NETWORKS[name]()
    if settled:
        settle(model, inputs)
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            out = model(*inputs)
            times.append(time.perf_counter() - start)
    values = tensors(out)
    if not values:
        raise ValueError(f'no tensor in the output, a {type(out).__name__}')
    if not all(t.isfinite().all() for t in values):
        raise ValueError('the output is not finite')
    params = sum(p.numel() for p in model.parameters())
    return {'forward': f'{statistics.median(times):.4f}', 'params': params}, model, inputs


def examine(model: object, inputs: tuple) -> dict:
    """Find the sites of a network, with proof: the columns of the table."""
    from udfc_nb import UDFCError, find_sites
    start = time.perf_counter()
    try:
        graph = find_sites(model, inputs, sites='all', verify=True)
    except Exception as error:
        result = 'refused' if isinstance(error, UDFCError) else 'killed' if out_of_memory(error) else 'failed'
        return {'result': result, 'seconds': f'{time.perf_counter() - start:.2f}', 'reason': first_line(error)}
    proof, seconds = graph.proof, time.perf_counter() - start
    return {'result': 'ok', 'record': f'{time_of_record(model, inputs):.4f}', 'sites': len(graph.sites),
        'share': f'{float(proof.share):.4f}',
            'difference': f'{float(proof.difference):.3g}', 'runs': proof.runs, 'held': len(proof.held),
            'seconds': f'{seconds:.2f}'}


def time_of_record(model: object, inputs: tuple) -> float:
    """Seconds of a record alone, median of three."""
    from udfc_nb.graph.record import record
    net, times = copy.deepcopy(model), []
    for _ in range(3):
        start = time.perf_counter()
        record(net, inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def work(name: str, options: argparse.Namespace, answer: Connection) -> None:
    """Build and examine one network; send what is known as soon as it is."""
    limit = int(options.memory_gb * 2 ** 30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if not options.verbose:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    try:
        row, model, inputs = build(name, options.settle)
    except Exception as error:
        answer.send({'result': 'killed' if out_of_memory(error) else 'nobuild', 'reason': first_line(error)})
        return
    answer.send(row)
    answer.send({'result': 'ok'} if options.build_only else examine(model, inputs))


def watch(name: str, options: argparse.Namespace) -> dict:
    """Run one network under the limits: its row."""
    context = multiprocessing.get_context('forkserver')
    answer, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, options, send))
    process.start()
    send.close()
    row = {'name': name}
    deadline = time.monotonic() + options.limit_seconds
    while 'result' not in row:
        if not answer.poll(max(0., deadline - time.monotonic())):
            row |= {'result': 'killed', 'reason': f'more than {options.limit_seconds:g} s'}
            break
        try:
            row |= answer.recv()
        except EOFError:
            process.join(5)
            row |= {'result': 'killed', 'reason': f'the process ended with code {process.exitcode}'}
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()
    return row


# ---- the table

def chosen(options: argparse.Namespace) -> list[str]:
    """The names to run, in the order of the zoo or of the sample."""
    from networks import NETWORKS
    names = SAMPLE[:options.sample] if options.sample else list(NETWORKS)
    if options.only:
        patterns = [p if any(c in p for c in '*?[') else f'*{p}*' for p in options.only.split(',')]
        names = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    return names


def versions() -> list[str]:
    """The date and the versions of the libraries, as comment lines."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            found.append(f'{package} -')
    python = '.'.join(map(str, sys.version_info[:3]))
    return [f'# {date.today().isoformat()}, Python {python}', '# ' + ', '.join(found)]


def read(path: Path) -> list[dict]:
    """The rows of a table that is there already."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
    return list(csv.DictReader(lines))


def summary(rows: list[dict]) -> str:
    """How many of each result, and the medians."""
    counts = {r: sum(row['result'] == r for row in rows) for r in RESULTS}
    lines = [f'{len(rows)} networks: ' + ', '.join(f'{n} {r}' for r, n in counts.items() if n)]
    good = [row for row in rows if row['result'] == 'ok' and row.get('share')]
    if good:
        share = statistics.median(float(row['share']) for row in good)
        ratio = statistics.median(float(row['seconds']) / max(float(row['forward']), 1e-4) for row in good)
        alone = statistics.median(float(row['record']) / max(float(row['forward']), 1e-4) for row in good)
        lines.append(f'medians of the {len(good)} that are ok: share {share:.3f}, record / forward {alone:.1f}, '
                     f'all with the proof / forward {ratio:.1f}')
    return '\n'.join(lines)


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', help='names: a pattern with * and ?, or a part of the name; several with commas')
    parser.add_argument('--sample', type=int, nargs='?', const=len(SAMPLE), help='the first N of a fixed list of forty')
    parser.add_argument('--limit-seconds', type=float, default=60, help='for each network, building included')
    parser.add_argument('--memory-gb', type=float, default=6, help='for each network')
    parser.add_argument('--out', type=Path, default=HERE / 'table.csv')
    parser.add_argument('--resume', action='store_true', help='keep the rows of the table that is there and go on')
    parser.add_argument('--build-only', action='store_true', help='only build the networks and run them')
    parser.add_argument('--settle', action='store_true', help='batch norms get about the statistics of the inputs')
    parser.add_argument('--versions', action='store_true', help='put date and versions at the head of the table')
    parser.add_argument('--strict', action='store_true', help='exit with 1 unless every row is ok or refused')
    parser.add_argument('--verbose', action='store_true', help='show what the networks print')
    return parser.parse_args()


def prepare(names: list[str], options: argparse.Namespace) -> None:
    """Start the process that the others are forked from, with the libraries imported."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (str(HERE), os.environ.get('PYTHONPATH'))))
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    preload = ['torch', 'networks'] + sorted({PRELOAD[s] for s in (n.split(':')[0] for n in names) if s in PRELOAD})
    if not options.build_only:
        check = subprocess.run([sys.executable, '-c', 'from udfc_nb import UDFCError, find_sites'], check=False)
        if check.returncode:
            raise SystemExit('udfc_nb cannot be imported here')
        preload.append('udfc_nb')
    multiprocessing.set_forkserver_preload(preload)


def main() -> int:
    """Run the networks and write their rows."""
    options = arguments()
    sys.path.insert(0, str(HERE))
    names = chosen(options)
    rows = read(options.out) if options.resume else []
    done = {row['name'] for row in rows}
    prepare(names, options)
    start = time.monotonic()
    fresh = not rows
    with options.out.open('w' if fresh else 'a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, restval='')
        if fresh:
            file.writelines(line + '\n' for line in (versions() if options.versions else []))
            writer.writeheader()
        for i, name in enumerate(names, 1):
            if name in done:
                continue
            row = watch(name, options)
            rows.append(row)
            writer.writerow(row)
            file.flush()
            text = ' '.join(str(row.get(c, '')) for c in ('result', 'share', 'seconds', 'forward', 'reason'))
            print(f'{i}/{len(names)} {name}: {text}', flush=True)
    print(summary(rows))
    print(f'{time.monotonic() - start:.0f} s, table in {options.out}')
    return int(options.strict and any(row['result'] not in ('ok', 'refused') for row in rows))


if __name__ == '__main__':
    sys.exit(main())
