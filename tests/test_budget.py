"`size_budget` is kept to the byte, as `save` writes it, or refused."
import pytest, torch
from torch import nn
from udfc_nb import compress
from udfc_nb.run.result import Compressed, within
from udfc_nb.errors import BudgetError

class Two(nn.Module):
    "Two branches side by side, a factor for every channel behind them."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.n, self.g, self.c = (nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), nn.BatchNorm2d(32),
            nn.Parameter(torch.ones(1, 32, 1, 1)), nn.Conv2d(32, 4, 1))
    def forward(self, x): return self.c(self.n(torch.cat([self.a(x), self.b(x)], 1)).relu()*self.g)

class Tied(nn.Module):
    "Two layers of one weight."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3, padding=1),
            nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 4, 1))
        self.c.weight = self.b.weight
    def forward(self, x): return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())

R, S = nn.ReLU, nn.Sequential
def line(): return S(nn.Conv1d(3, 24, 5), nn.BatchNorm1d(24), R(), nn.Conv1d(24, 24, 3), R(), nn.Conv1d(24, 4, 1))
def back(): return S(nn.Conv2d(3, 24, 3), R(), nn.ConvTranspose2d(24, 24, 2, stride=2), R(), nn.Conv2d(24, 4, 3))
def dense(): return S(nn.Linear(20, 48), R(), nn.Linear(48, 48), R(), nn.Linear(48, 5))
def grouped():
    return S(nn.Conv2d(3, 32, 3), R(), nn.Conv2d(32, 32, 3, groups=4), R(), nn.Conv2d(32, 32, 3, groups=32), R(),
        nn.Conv2d(32, 4, 1))

CASES = [(Two, (2, 3, 8, 8), dict(recipe='fast')), (dense, (2, 20), dict(recipe='dfq')),
    (grouped, (2, 3, 12, 12), dict(recipe='prune', activation_bits=8)), (line, (2, 3, 20), dict(recipe='squant')),
    (back, (2, 3, 8, 8), dict(recipe='paper', activation_bits=6)), (Tied, (2, 3, 8, 8), dict(recipe='prune')),
    (dense, (2, 20), dict(recipe='field', layer_bits={'4': 6}, layer_ratios={'0': .2}))]

@pytest.mark.parametrize('make,shape,kw', CASES, ids=[f"{c[0].__name__}-{c[2]['recipe']}" for c in CASES])
def test_a_budget_is_kept_or_refused(make, shape, kw, tmp_path):
    torch.manual_seed(0); net, x, kept = make().eval(), torch.randn(shape), 0
    whole = compress(net, x, recipe='prune').save(tmp_path/'w.safetensors')
    for share in (.4, .1):
        most = int(whole*share)
        try: out = compress(net, x, size_budget=most, **kw)
        except BudgetError as e: assert e.layer == 'size_budget' and f'{most:,}' in str(e) and e.hint; continue
        assert out.save(tmp_path/'a.safetensors') <= most and out.report.settings['size_budget'] == most; kept += 1
    assert kept

def test_what_is_written_counts_and_not_what_is_foreseen():
    sizes, aims = iter([130, 120, 90]), []
    class Out(Compressed):
        def save(self, path): return next(sizes)
    def run(aim): aims.append(aim); return Out(None, None)
    assert isinstance(within(run, 100), Out) and aims == [100, 70, 50]
    def stops(aim):
        if aim < 100:
            raise BudgetError('the file comes down to 90 bytes', hint='a budget leaves every site some channels')
        return Out(None, None)
    sizes = iter([130])
    with pytest.raises(BudgetError, match='130 bytes, 100 are asked for') as info: within(stops, 100)
    assert info.value.hint
