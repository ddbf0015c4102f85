"""The paper's sizes, which do not depend on weights: 4 bytes × parameters in rounded millions (METHOD of the paper's
tables)."""
import json, os, subprocess, sys, time
from pathlib import Path
import pytest, torch, torchvision
from torch import nn
from udfc_nb import compress
from udfc_nb.data.networks import PreReLUResNet


def n_params(m): return sum(p.numel() for p in m.parameters())
def megabytes(params, decimals): return round(4*round(params/1e6, decimals), 3)

def inner_by_rule(model, ratio):
    """Parameters when int(C·(1−r)) channels of conv1 (BasicBlock), of conv1 and conv2 (Bottleneck) remain; from the
    shapes alone."""
    total = n_params(model)
    for block in model.modules():
        if not isinstance(block, (torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck)): continue
        convs = [c for c in (block.conv1, block.conv2, getattr(block, 'conv3', None)) if c is not None]
        widths = [convs[0].in_channels]+[int(c.out_channels*(1-ratio)) for c in convs[:-1]]+[convs[-1].out_channels]
        for c, a, b in zip(convs, widths, widths[1:]): total += a*b*c.kernel_size[0]*c.kernel_size[1]-c.weight.numel()
        for c, b in zip(convs, widths[1:]): total += 2*b-2*c.out_channels # its batch norm
    return total

PAPER = dict(resnet34={.1: 78.8, .2: 70.0, .3: 61.6}, resnet101={.1: 154.4, .2: 132.4, .3: 112.4})

@pytest.mark.parametrize('name,ratio', [(n, r) for n in PAPER for r in PAPER[n]])
def test_rule_gives_the_printed_sizes(name, ratio):
    with torch.device('meta'): model = getattr(torchvision.models, name)()
    assert megabytes(inner_by_rule(model, ratio), 1) == PAPER[name][ratio]

@pytest.mark.parametrize('name,ratio',
    [('resnet34', .3), ('resnet101', .3), pytest.param('resnet34', .1, marks=pytest.mark.slow),
    pytest.param('resnet34', .2, marks=pytest.mark.slow),
    pytest.param('resnet101', .1, marks=pytest.mark.slow), pytest.param('resnet101', .2, marks=pytest.mark.slow)])
def test_compress_gives_the_printed_sizes(name, ratio):
    """Really cut, not masked: the tensors of the network that comes out are counted. The stem is no block's inner
    layer: the
    paper leaves it alone, and in front of bottlenecks, where no sum ties it, so must the caller."""
    model = getattr(torchvision.models, name)()
    out = compress(model, torch.randn(1, 3, 64, 64), pruning_ratio=ratio, layer_ratios={'conv1': 0}, recipe='prune')
    assert n_params(out.model) == out.report.totals['params'] == inner_by_rule(model, ratio)
    assert megabytes(n_params(out.model), 1) == PAPER[name][ratio]
    with torch.no_grad(): assert out.model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)

MACS = dict(resnet34={.1: 3.30, .2: 2.95, .3: 2.59}, resnet101={.1: 6.70, .2: 5.70, .3: 4.78}) # 10⁹, at 224×224

@pytest.mark.parametrize('name,ratio', [('resnet34', .3), pytest.param('resnet101', .3, marks=pytest.mark.slow)])
def test_macs_at_the_printed_sizes(name, ratio):
    out = compress(getattr(torchvision.models, name)(), torch.randn(1, 3, 224, 224), pruning_ratio=ratio,
        layer_ratios={'conv1': 0}, recipe='prune')
    assert round(out.report.totals['macs']/1e9, 2) == pytest.approx(MACS[name][ratio], abs=.011)

@pytest.mark.parametrize('ratio,size,codes', [(.3, 2.36, .293), (.4, 2.04, .253), (.5, 1.72, .214)])
def test_resnet56(ratio, size, codes):
    out = compress(PreReLUResNet(9).eval(), torch.randn(1, 3, 32, 32), pruning_ratio=ratio, weight_bits=4,
        recipe='prune')
    assert megabytes(n_params(out.model), 2) == size
    weights = sum(m.weight.numel() for m in out.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert round(weights*4/8/1e6, 3) == codes
    assert (sum(q.codes.numel() for q in out.codes.values()) == weights
        and all(0 <= q.codes.min() and q.codes.max() < 16 for q in out.codes.values()))
    for b in [*out.model.layer1, *out.model.layer2, *out.model.layer3]:
        assert b.conv1.out_channels == int(b.conv2.out_channels*(1-ratio))

@pytest.mark.slow
@pytest.mark.parametrize('build,shape,seconds',
    [(lambda: PreReLUResNet(9), (1, 3, 32, 32), 2), (torchvision.models.resnet50, (1, 3, 224, 224), 5),
    (torchvision.models.resnet101, (1, 3, 224, 224), 10)],
    ids=['resnet56', 'resnet50', 'resnet101'])
def test_seconds(build, shape, seconds):
    """Tracing included. Processor seconds of one thread: an upper limit for the clock of an idle machine with two
    cores, and the same under load."""
    model, x, threads = build().eval(), torch.randn(*shape), torch.get_num_threads()
    times = []
    try:
        torch.set_num_threads(1)
        for _ in range(2):
            start = time.process_time()
            compress(model, x, pruning_ratio=.3, recipe='paper'); times.append(time.process_time()-start)
    finally: torch.set_num_threads(threads)
    assert min(times) < seconds, times

PEAK = '''
import json, sys, torch, torchvision
from udfc_nb import compress
torch.set_num_threads(1)
def kib(key): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))
# what the libraries themselves take
compress(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64), pruning_ratio=.3, recipe='prune')
net = getattr(torchvision.models, sys.argv[1])()
open('/proc/self/clear_refs', 'w').write('5') # the peak is counted from here
size, before = sum(t.numel()*t.element_size() for t in net.state_dict().values())/1024, kib('VmRSS')
out = compress(net, torch.zeros(1, 3, 224, 224), pruning_ratio=.3, recipe='paper')
print(json.dumps(1+(kib('VmHWM')-before)/size))
'''

@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak of the memory is read from /proc')
@pytest.mark.parametrize('name', ['resnet50', pytest.param('resnet101', marks=pytest.mark.slow)])
def test_peak_memory(name):
    "Below three times the network, itself included, in a process of its own, whose allocator gives back what is freed."
    done = subprocess.run([sys.executable, '-c', PEAK, name], capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '100000'})
    if 'PermissionError' in done.stderr or 'OSError' in done.stderr:
        pytest.skip('the peak of the memory cannot be reset here')
    assert done.returncode == 0, done.stderr
    assert 1 < json.loads(done.stdout) < 3, done.stdout
