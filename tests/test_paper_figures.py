"The accuracies of the paper's ResNet-56, on 5,000 real images; `make test-data` runs this."
import functools
import pytest, torch
from udfc_nb import compress
from udfc_nb.data.networks import load_network, test_images as images_of

pytestmark = pytest.mark.data
X = torch.randn(1, 3, 32, 32)


@pytest.fixture(scope='module')
def top1(data_dir):
    "Top-1 in percent of `compress(nm56, **kwargs)`, each measured once."
    model, _ = load_network('nm56', data_dir)
    x, y = images_of('nm56', data_dir)
    assert len(x) == 5000
    @functools.cache
    def measure(**kwargs):
        net = compress(model, X, **kwargs).model.eval() if kwargs else model.eval()
        with torch.no_grad():
            right = sum((net(a).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500)))
        return 100*right/len(x)
    return measure

def test_uncompressed(top1):
    "93.88 on all 10,000 test images (data/README.md); half of them has a standard error of a third of a point."
    assert top1() == pytest.approx(93.88, abs=.7)

@pytest.mark.parametrize('ratio,want', [(.3, 77), (.4, 46), (.5, 25)])
def test_prune(top1, ratio, want): assert top1(pruning_ratio=ratio, recipe='prune') == pytest.approx(want, abs=2.5)

@pytest.mark.parametrize('ratio,want', [(.3, 84.5), (.4, 74), (.5, 58)])
def test_neuron_merging(top1, ratio, want):
    assert top1(pruning_ratio=ratio, recipe='neuron-merging') == pytest.approx(want, abs=2.5)

@pytest.mark.parametrize('ratio,least', [(.3, 87), (.4, 78), (.5, 40)])
def test_paper(top1, ratio, least): assert top1(pruning_ratio=ratio, recipe='paper') >= least

def test_six_bits(top1): assert abs(top1(weight_bits=6, recipe='paper')-top1()) <= 1

def test_four_bits_per_channel(top1): assert top1()-top1(weight_bits=4, recipe='paper') <= 6

@pytest.mark.slow
@pytest.mark.parametrize('ratio', [.3, .4, .5])
def test_six_bits_on_the_pruned_network(top1, ratio):
    assert abs(top1(pruning_ratio=ratio, weight_bits=6, recipe='paper')-top1(pruning_ratio=ratio, recipe='paper')) <= 1
