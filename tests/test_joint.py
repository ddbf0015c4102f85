"A number of bytes instead of ratio and bits; accuracy on a folder of images."
import pytest, torch, torch.nn as nn
from hypothesis import given, settings, strategies as st
from PIL import Image
from udfc_nb import compress, load, RECIPES
from udfc_nb.app.cli import main
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.errors import BudgetError
from udfc_nb.app.evaluate import ImageFolderError, image_folder, image_transform, top_k
from udfc_nb.graph.proof import find_sites
from udfc_nb.recipes.job import Job
from udfc_nb.run.working import WorkingCopy
from udfc_nb.files.joint import FileSize, allot_both
from udfc_nb.run.budget import WIDTHS
from udfc_nb.run.sensitivity import bit_costs, site_costs
from udfc_nb.run.source import Source
from nets import assert_unchanged, roughen, snapshot

blank = torch.zeros(1, 1, 8, 8)


class Mixed(nn.Module):
    "A depthwise block, a concatenation, a PReLU, a flatten and two linear layers: tensors of every role."
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.d = (nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24),
            nn.Conv2d(24, 24, 3, padding=1, groups=24))
        self.p, self.b, self.act = nn.Conv2d(24, 12, 1), nn.Conv2d(24, 20, 3, padding=1), nn.PReLU(32)
        self.l, self.fc = nn.Linear(32*16, 40), nn.Linear(40, 5)
    def forward(self, x):
        x = self.d(self.bn(self.a(x)).relu()).relu()
        x = nn.functional.max_pool2d(self.act(torch.cat([self.p(x), self.b(x)], 1)), 2)
        return self.fc(self.l(x.flatten(1)).relu())


@pytest.fixture(scope='module')
def mixed(): torch.manual_seed(0); return roughen(Mixed()).eval()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_size_is_foretold(data, mixed, tmp_path_factory):
    "The bytes that are promised are those of the file, for any choice of channels and bits."
    job = Job(WorkingCopy(mixed).net, find_sites(mixed, blank), RECIPES['best'])
    size = FileSize(job, dict.fromkeys(job.order, 8))
    less = {n: data.draw(st.integers(0, s.size//s.groups//2), label=n)*s.groups for n, s in job.sites.items()}
    bits = {n: data.draw(st.sampled_from([*WIDTHS, 12, None]), label=n) for n in job.order}
    out = compress(mixed, blank, layer_ratios={n: k/job.sites[n].size for n, k in less.items()}, layer_bits=bits,
        recipe=RECIPES['field'].but(rounding='nearest'))
    real = out.save(tmp_path_factory.mktemp('joint')/'a.safetensors')
    told = size(less, bits)
    gone = sum(b is None for b in bits.values()) # their entries in the text go as well
    # each is set down with four characters; where all are alike they take one
    zeros = sum(q.zero.numel() for q in out.codes.values())
    assert -8 <= told-real <= 8*len(size.state)+300*gone+4*zeros


@pytest.mark.parametrize('share', [.8, .45, .3])
def test_fits_and_loads(mixed, share, tmp_path):
    before, whole = snapshot(mixed), compress(mixed, blank, weight_bits=8).save(tmp_path/'whole.safetensors')
    out = compress(mixed, blank, size_budget=share*whole)
    assert_unchanged(mixed, before)
    real = out.save(tmp_path/'a.safetensors')
    assert .9*share*whole < real <= share*whole
    assert out.report.settings['size_budget'] == share*whole
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad(): assert torch.equal(load(tmp_path/'a.safetensors', Mixed())(x), out.model(x))


def test_larger_is_better():
    "More bytes, smaller change of the outputs (the digits' training images)."
    net, x = digits_net(), digits('train')[0][:300]
    with torch.no_grad():
        change = [((compress(net, blank, size_budget=b).model(x)-net(x)).square().mean()).item()
            for b in (35_000, 60_000, 120_000)]
    assert change[0] > 2*change[1] > 4*change[2]


def test_nothing_to_do():
    "What fits as it is stays as it is, bit for bit; a byte less, and it is rounded."
    net, x = digits_net(), torch.randn(3, 1, 8, 8)
    whole = compress(net, blank, size_budget=10**7)
    assert not whole.codes and torch.equal(whole.model(x), net(x))
    assert compress(net, blank, size_budget=600_000).codes


def test_own_choices_stay(tmp_path):
    net = digits_net()
    out = compress(net, blank, size_budget=60_000, layer_bits={'conv1': 8, 'fc': None},
        layer_ratios={'layer1.0.conv1': .5, 'layer1.1.conv1': 0.}, ignored_layers=['layer2.1.conv2'], activation_bits=8)
    rows = {r['layer']: r for r in out.report.rows}
    assert (rows['conv1']['bits'], rows['fc']['bits'], rows['layer2.1.conv2']['bits']) == (8, 32, 32)
    assert (rows['layer1.0.conv1']['out'], rows['layer1.1.conv1']['out']) == (8, 16)
    assert out.save(tmp_path/'a.safetensors') <= 60_000


@pytest.mark.parametrize('kw,why',
    [(dict(size_budget=9_000), 'comes down to'), (dict(size_budget=0), 'number of bytes'),
    (dict(size_budget=5e4, pruning_ratio=.3), 'leave those out'),
    (dict(size_budget=5e4, weight_bits=4), 'leave those out')])
def test_refused(kw, why):
    net = digits_net(); before = snapshot(net)
    with pytest.raises(BudgetError, match=why): compress(net, blank, **kw)
    assert_unchanged(net, before)


@pytest.mark.parametrize('recipe', ['paper', 'prune', 'fast', 'field', 'best'])
def test_every_recipe(recipe, tmp_path):
    "A size, and an average of bits, can be asked of any recipe."
    net = digits_net(); before = snapshot(net)
    real = compress(net, blank, size_budget=50_000, recipe=recipe).save(tmp_path/'a.safetensors')
    assert 45_000 < real <= 50_000
    codes = compress(net, blank, weight_bits=3.5, recipe=recipe).codes.values()
    assert 3.3 < sum(q.codes.numel()*q.bits for q in codes)/sum(q.codes.numel() for q in codes) <= 3.5+1e-6
    assert_unchanged(net, before)


def test_curves_do_not_depend_on_the_order():
    "What a site or a layer costs is the same, whichever is asked first."
    net = digits_net()
    def costs(turn):
        job = Job(WorkingCopy(net).net, find_sites(net, blank), RECIPES['best'])
        job.source = Source(net, job.graph, blank)
        return (site_costs(job, dict(sorted(job.sites.items(), reverse=turn))),
            bit_costs(job, sorted(job.order, reverse=turn)))
    for a, b in zip(costs(False), costs(True)):
        assert all(torch.allclose(torch.tensor(a[n]), torch.tensor(b[n]), rtol=1e-3) for n in a)


def test_progress_ends():
    seen = []
    compress(digits_net(), blank, size_budget=60_000, progress=lambda done, total, layer: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and all(d <= t for d, t in seen)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_moves_meet_the_target(data):
    "Any curves: the target is met, and no single move taken back would still fit."
    names = 'ab'
    sites = {'s': sorted(data.draw(st.lists(st.floats(0, 10), min_size=4, max_size=8)))}; sites['s'][0] = 0.
    layers = {n: sorted(data.draw(st.lists(st.floats(0, 10), min_size=len(WIDTHS), max_size=len(WIDTHS))),
        reverse=True) for n in names}
    class Size:
        near, owned = {'s': list(names)}, tuple(names)
        def part(self, o, less, bits): return 10*(9-less['s'])*bits[o]
        def __call__(self, less, bits): return sum(self.part(o, less, bits) for o in names)
    size = Size()
    low, high = size({'s': len(sites['s'])-1}, dict.fromkeys(names, 2)), size({'s': 0}, dict.fromkeys(names, 8))
    target = low+data.draw(st.floats(0, 1))*(high-low)
    less, bits = allot_both(sites, layers, size, target, {'s': 1})
    assert size(less, bits) <= target and 0 <= less['s'] < len(sites['s']) and all(2 <= b <= 8 for b in bits.values())


# ---- images

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "ImageNet's layout, with digits."
    root, (x, y) = tmp_path_factory.mktemp('images'), digits('test')
    for c in range(10):
        (d := root/'val'/f'n{c:08}').mkdir(parents=True)
        for i in (y == c).nonzero()[:3, 0].tolist():
            Image.fromarray(((x[i, 0]-x.min())/(x.max()-x.min())*255).byte().numpy()).save(d/f'{i}.png')
    return root


def test_eval_command(folder, capsys, tmp_path):
    argv = ['eval', 'udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8', '--imagenet', str(folder)]
    assert main([*argv, '--bits', '4', '--ratio', '.3']) == 0
    out = capsys.readouterr().out
    assert 'uncompressed' in out and 'compressed' in out and '30 images' in out
    assert main(['compress', *argv[1:4], '--bits', '4', '--output', str(tmp_path/'a.safetensors')]) == 0
    capsys.readouterr()
    assert main([*argv, '--compressed', str(tmp_path/'a.safetensors'), '--images', '20']) == 0
    assert '20 images' in capsys.readouterr().out


def test_eval_of_a_torchvision_network(folder, capsys):
    assert main(['eval', 'squeezenet1_1', '--num-classes', '10', '--imagenet', str(folder), '--bits', '8', '--recipe',
        'paper', '--images', '4', '--input-shape', '1,3,64,64']) == 0
    assert 'top-5' in capsys.readouterr().out


@pytest.mark.parametrize('change,why', [(['--imagenet', '/nowhere'], 'no such folder'), (['--images', '0'], '')])
def test_eval_refused(folder, capsys, change, why):
    argv = ['eval', 'udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8', '--imagenet', str(folder), *change]
    try: code = main(argv)
    except SystemExit as e: code = e.code
    assert code == 2 and why in capsys.readouterr().err


def test_wrong_number_of_classes(folder, capsys):
    assert main(['eval', 'resnet18', '--imagenet', str(folder), '--bits', '8']) == 2
    err = capsys.readouterr().err
    assert '10 folders of classes' in err and '1000' in err


def test_a_damaged_image(folder, tmp_path):
    (tmp_path/'val'/'a').mkdir(parents=True); (tmp_path/'val'/'a'/'x.png').write_bytes(b'\x89PNG no image')
    with pytest.raises(ImageFolderError): image_folder(tmp_path/'nothing', image_transform())
    with pytest.raises(ImageFolderError, match='x.png'):
        top_k(digits_net(), image_folder(tmp_path, image_transform(8, (.5,), (.5,))))


def test_size_budget_on_the_command_line(tmp_path, capsys):
    assert main(['compress', 'udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8', '--size-budget', '60000',
        '--output', str(tmp_path/'a.safetensors'), '--quiet']) == 0
    assert (tmp_path/'a.safetensors').stat().st_size <= 60_000
