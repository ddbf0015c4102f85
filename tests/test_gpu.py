"`make gpu` without a card: the small form of its script, so that it runs when there is one."
import csv, importlib.util
import pytest
from books import TOP


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(TOP/'zoo'))
    spec = importlib.util.spec_from_file_location('gpu_script', TOP/'zoo'/'gpu.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_every_row_has_its_numbers(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, 'SETTING', dict(pruning_ratio=.3, weight_bits=8))
    rows = gpu.main(['--small', '--only', 'digits', '--device', 'cpu', '--steps', '3', '--out', str(tmp_path/'g.csv')])
    with (tmp_path/'g.csv').open() as f: assert list(csv.DictReader(f)) == [{k: str(v) for k, v in r.items()}
        for r in rows]
    assert [r['what'] for r in rows] == ['fast', 'best', 'step of streams']
    assert {(r['network'], r['weights'], r['device']) for r in rows} == {('digits', 'trained', 'cpu')}
    assert all(float(r['seconds']) > 0 and float(r['products']) > 0 for r in rows)
    assert all(float(r['base']) > 98 and float(r['accuracy']) > 90 and float(r['share']) < .8 for r in rows[:2])
    text = (tmp_path/'g.md').read_text()
    assert text.count('\n| ') == 3 and 'TFLOP/s' in text and 'step of streams' in text


def test_a_network_that_cannot_be_trained_is_a_note(gpu, tmp_path, monkeypatch):
    def refuses(*args, **kwargs): raise gpu.UDFCError('no classifier')
    monkeypatch.setattr(gpu, 'refine', refuses); monkeypatch.setattr(gpu, 'RECIPES', ('prune',))
    rows = gpu.main(['--small', '--only', 'lenet', '--device', 'cpu', '--out', str(tmp_path/'g.csv')])
    assert [r['note'] for r in rows] == ['', 'no classifier'] and rows[0]['accuracy'] == ''


def test_random_weights_have_no_accuracy(gpu):
    "And trained ones only with images."
    net, x, weights, right = gpu.load('mobilenet_v2', False, None, 1, 'cpu')
    assert (weights, right, tuple(x.shape)) == ('random', None, (1, 3, 224, 224))
