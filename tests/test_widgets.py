"""The workbench at three levels: its Python object, its notebook in a kernel, and its page in a browser."""
import copy, json, os, re, shutil, socket, subprocess, sys, threading, time
from contextlib import closing, contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
import pytest, torch
from torch import nn
from udfc_nb import load
from udfc_nb.digits import digits_net
from udfc_nb.runs import Trial, digits_subject, layer_figure, message, open_network, read_overrides, tradeoff_figure
from udfc_nb.widgets import Workbench, devices

TOP = Path(__file__).resolve().parents[1]
NOTEBOOK = TOP/'nbs'/'51_widgets.ipynb'
STATE, VIEW = 'application/vnd.jupyter.widget-state+json', 'application/vnd.jupyter.widget-view+json'


# ---- Python

@pytest.fixture
def bench():
    "A workbench on a network of three layers that takes no time."
    net = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    bench = Workbench(net, torch.randn(2, 2, 6, 6), lambda m: 100*(m(torch.ones(4, 2, 6, 6)).argmax(1) == 0).double().mean().item())
    bench.c.recipe.value, bench.c.ratio.value = 'paper', .25
    return bench


def press(bench, button, seconds=60):
    getattr(bench.c, button).click()
    assert bench.wait(seconds), f'{button} has not ended after {seconds} s'


@contextmanager
def untouched(model):
    "Fails if anything of the network is different afterwards: weights, buffers, modes, hooks."
    def all_of(m): return ({n: t.clone() for n, t in m.state_dict().items()}, [(k.training, len(k._forward_pre_hooks), len(k._forward_hooks)) for k in m.modules()])
    weights, rest = all_of(model)
    yield
    weights_now, rest_now = all_of(model)
    assert rest == rest_now and all(torch.equal(t, weights_now[n]) for n, t in weights.items())


def test_run_shows_the_result(bench):
    with untouched(bench.subject.model): press(bench, 'run')
    c, trial = bench.c, bench.trials[0]
    assert c.message.value == '' and c.result.layout.display == '' and (c.run.disabled, c.stop.disabled) == (False, True)
    assert f'{trial.before:.1f} → {trial.after:.1f} %' in c.headline.value
    assert [r['out'] for r in trial.report.rows] == [9, 6, 3] and '9/12' in c.report.value and 'paper, 0.25, 4 bit' in c.table.value
    assert c.by_layer.value[:4] == c.tradeoff.value[:4] == b'\x89PNG'


def test_settings_reach_compress(bench):
    bench.c.bits.value = '6'
    bench.per_layer['0'][0].value, bench.per_layer['3'][0].value = '0,5', '0'
    bench.per_layer['3'][1].value, bench.per_layer['6'][1].value = '8', 'float'
    press(bench, 'run')
    assert [(r['out'], r['bits']) for r in bench.trials[0].report.rows] == [(6, 6), (8, 8), (3, 32)]


def test_layer_list_says_why(bench):
    rows = bench.c.layers.children[0].children
    assert ['prunable' in r.children[0].value for r in rows] == [True, True, False]
    assert [bench.per_layer[n][0].disabled for n in '036'] == [False, False, True]
    assert 'feeds an output' in rows[2].children[0].value and bench.c.layers.titles[0] == 'Layers: 2 of 3 can lose channels'


def test_reset(bench):
    bench.per_layer['0'][1].value = '2'
    press(bench, 'run'); press(bench, 'reset')
    assert (bench.c.recipe.value, bench.c.ratio.value, bench.c.bits.value, bench.per_layer['0'][1].value) == ('best', .3, '4', '')
    assert bench.trials == [] and bench.c.result.layout.display == 'none'


def test_stop_takes_effect_at_the_next_layer():
    bench = Workbench(); seen = []
    def watch(change):
        seen.append(change.new)
        if change.new == 4: bench.c.stop.click()
    bench.c.bar.observe(watch, 'value')
    with untouched(bench.subject.model): press(bench, 'run')
    assert max(seen) == 4 and bench.trials == [] and 'Stopped' in bench.c.message.value
    bench.c.bar.unobserve(watch, 'value'); bench.c.recipe.value = 'paper'
    press(bench, 'run')
    assert len(bench.trials) == 1 and bench.c.message.value == '' # and it can be started again


def test_stop_reaches_the_measuring(bench):
    started = threading.Event()
    def forever(model):
        while True: model(torch.ones(1, 2, 6, 6)); started.set()
    bench.subject.evaluate = forever
    with untouched(bench.subject.model):
        bench.c.run.click(); assert started.wait(30)
        assert bench.back.busy and bench.c.run.disabled and not bench.c.stop.disabled # meanwhile this thread was free
        bench.run(); assert 'running already' in bench.c.message.value
        press(bench, 'stop', 10)
    assert 'Stopped' in bench.c.message.value and bench.trials == [] and not bench.c.run.disabled


@pytest.mark.parametrize('bits, ratio, says', [('four', '', 'is no number'), ('99', '', 'bit-width'), ('0', '', 'bit-width'), ('4', 'much', 'is no number'), ('4', '1', '0: '), ('4', '-0.1', '0: '),
    ('1e400', '', 'is no number'), ('<b>', '', '&lt;b&gt;')])
def test_nonsense_is_answered(bench, bits, ratio, says):
    bench.c.bits.value, bench.per_layer['0'][0].value = bits, ratio
    with untouched(bench.subject.model): press(bench, 'run')
    assert says in bench.c.message.value and 'What to do' in bench.c.message.value and 'Traceback' not in bench.c.message.value
    assert bench.trials == [] and not bench.c.run.disabled


def test_an_error_of_the_caller_is_shown(bench):
    def broken(model): raise KeyError('labels <missing>')
    bench.subject.evaluate = broken
    with untouched(bench.subject.model): press(bench, 'run')
    assert 'KeyError' in bench.c.message.value and 'labels &lt;missing&gt;' in bench.c.message.value and '<details>' in bench.c.message.value


def test_network_that_cannot_be_copied():
    class Locked(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.lock = nn.Conv2d(1, 4, 3), threading.Lock()
        def forward(self, x): return self.conv(x)
    bench = Workbench(Locked(), torch.ones(1, 1, 5, 5))
    assert 'What to do' in bench.c.message.value and 'lock' in bench.c.message.value and bench.subject is None
    press(bench, 'run'); assert 'no network is open' in bench.c.message.value


def test_other_networks(bench, tmp_path):
    c = bench.c
    c.network.value = 'torchvision'; bench.wait()
    assert c.name.layout.display == '' and c.weights.layout.display == 'none' and bench.subject is None
    press(bench, 'open'); assert 'no network is named' in c.message.value
    c.name.value = 'resnet5O'; press(bench, 'open'); assert 'did you mean resnet50' in c.message.value
    c.name.value, c.shape.value = 'squeezenet1_1', '1,3,x'; press(bench, 'open'); assert 'is no shape' in c.message.value
    c.shape.value = '1,3,64,64'; press(bench, 'open')
    assert 'weights are random' in c.message.value and len(bench.per_layer) == 26
    c.network.value = 'file'; c.name.value, c.shape.value = 'udfc_nb.digits:digits_net', '1,1,8,8'
    for bad, says in (('/nowhere.pt', 'not a file'), (__file__, 'cannot be read')):
        c.weights.value = bad; press(bench, 'open'); assert says in c.message.value
    torch.save(digits_net().state_dict(), tmp_path/'w.pt'); c.weights.value = str(tmp_path/'w.pt'); press(bench, 'open')
    assert c.message.value == '' and len(bench.per_layer) == 16


def test_pickles_that_run_code_are_refused(bench, tmp_path):
    class Bomb:
        def __reduce__(self): return (os.mkdir, (str(tmp_path/'ran'),))
    torch.save({'a': Bomb()}, tmp_path/'bomb.pt')
    bench.c.network.value = 'file'; bench.c.name.value, bench.c.weights.value = 'squeezenet1_1', str(tmp_path/'bomb.pt')
    press(bench, 'open')
    assert 'could run code' in bench.c.message.value and not (tmp_path/'ran').exists()


def test_save(bench, tmp_path):
    press(bench, 'save'); assert 'nothing to save' in bench.c.message.value
    press(bench, 'run')
    bench.c.path.value = str(tmp_path/'a.safetensors'); press(bench, 'save')
    trial, x = bench.trials[0], bench.subject.example
    assert f'{trial.bytes:,} bytes' in bench.c.message.value and (tmp_path/'a.safetensors').stat().st_size == trial.bytes
    with torch.no_grad(): assert torch.equal(load(tmp_path/'a.safetensors', bench.subject.model)(x), trial.out.model(x))
    bench.c.format.value = '.onnx'; assert bench.c.path.value == str(tmp_path/'a.onnx')
    press(bench, 'save'); assert (tmp_path/'a.onnx').stat().st_size > 0
    bench.c.path.value = 'a.bin'; press(bench, 'save'); assert 'must end in .onnx' in bench.c.message.value
    bench.c.path.value = str(tmp_path/'no'/'a.onnx'); press(bench, 'save'); assert 'another folder' in bench.c.message.value


def test_without_a_measure():
    bench = Workbench(digits_net(), torch.zeros(1, 1, 8, 8)); bench.c.recipe.value = 'prune'
    press(bench, 'run')
    assert bench.trials[0].after is None and 'on noise' in bench.c.headline.value
    assert tradeoff_figure(bench.trials).axes[0].get_ylabel().startswith('error')


def test_networks_of_earlier_trials_are_let_go(bench):
    for _ in range(2): press(bench, 'run')
    assert [t.out is None for t in bench.trials] == [True, False] and bench.c.table.value.count('<tr>') == 3


def test_figures_are_values_to_pictures(bench):
    press(bench, 'run')
    left, right = layer_figure(bench.trials[0]).axes
    kept = [p.get_width() for p in left.patches[3:]]
    assert kept == [100, 75, 75] and [t.get_text() for t in left.get_yticklabels()] == ['6', '3', '0']
    assert [p.get_width() for p in right.patches] == pytest.approx([100*bench.trials[0].errors[n] for n in '630'])


def test_devices(): assert devices()[0] == 'cpu' and len(devices()) == 1+torch.cuda.device_count()


@pytest.mark.gpu
def test_resnet50_on_cuda():
    bench = Workbench(open_network('resnet50').model, torch.zeros(1, 3, 224, 224))
    bench.c.device.value, bench.c.ratio.value = 'cuda:0', .4
    start = time.perf_counter()
    with untouched(bench.subject.model): press(bench, 'run', 600)
    assert bench.c.message.value == '' and next(bench.trials[0].out.model.parameters()).device.type == 'cpu'
    print(f"ResNet-50 on {torch.cuda.get_device_name()}: compress {bench.trials[0].seconds:.1f} s, with measuring and figures {time.perf_counter()-start:.1f} s")


# ---- kernel

def check_state(nb):
    "The state that a notebook was saved with holds its views, and everything that they lead to."
    views = [o['data'][VIEW]['model_id'] for c in nb['cells'] for o in c.get('outputs', ()) if VIEW in o.get('data', {})]
    state = nb['metadata']['widgets'][STATE]['state']
    todo, seen = list(views), set()
    while todo:
        if (i := todo.pop()) in seen: continue
        assert i in state, f'widget {i} is shown or referred to, but its state is not saved'
        seen.add(i); todo += re.findall('IPY_MODEL_([0-9a-f]+)', json.dumps(state[i]['state']))
    shown = [state[i] for i in seen]
    assert views and any('accuracy' in str(s['state'].get('value')) for s in shown if s['model_name'] == 'HTMLModel')
    pictures = [s for s in shown if s['model_name'] == 'ImageModel']
    assert len(pictures) == 2 and all(s['buffers'][0]['data'].startswith('iVBORw') for s in pictures) # PNG in base64
    return seen, state


def test_saved_state():
    seen, state = check_state(json.loads(NOTEBOOK.read_text()))
    assert seen == set(state), 'the notebook carries the state of widgets that no view shows: run .ci/execute nbs/51_widgets.ipynb'


def test_notebook_in_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(TOP), os.environ.get('PYTHONPATH')])))
    loader = SourceFileLoader('execute', str(TOP/'.ci'/'execute')) # a script without an ending
    loader.exec_module(execute := module_from_spec(spec_from_loader('execute', loader)))
    path = shutil.copy(NOTEBOOK, tmp_path)
    nb = execute.execute(path)
    check_state(nb)
    execute.nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).parent/'nbdev_clean', '--fname', path], check=True, cwd=TOP)
    check_state(json.loads(Path(path).read_text()))


# ---- browser

FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
WAIT = 120_000 # milliseconds; the first page has a kernel to start, and machines differ


def browser():
    "The path of a Chromium, or a skip; where UDFC_BROWSER is set, as .ci/run does, a failure."
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    if found: return found
    (pytest.fail if os.environ.get('UDFC_BROWSER') else pytest.skip)('no Chromium on PATH; on Debian: apt install chromium')


@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    "The address of a workbench that voila serves."
    nbformat, folder = pytest.importorskip('nbformat'), tmp_path_factory.mktemp('voila')
    browser(); pytest.importorskip('voila')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('from udfc_nb.widgets import Workbench\nWorkbench()')], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbformat.write(nb, folder/'bench.ipynb')
    with closing(socket.socket()) as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(TOP), os.environ.get('PYTHONPATH')])), PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    with open(folder/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'voila', 'bench.ipynb', '--no-browser', '--Voila.ip=127.0.0.1', f'--port={port}'], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with closing(socket.socket()) as s:
                if s.connect_ex(('127.0.0.1', port)) == 0: break
            assert server.poll() is None, (folder/'log').read_text()
            time.sleep(.1)
        yield f'http://127.0.0.1:{port}/'
    finally: server.terminate(); server.wait(30)


@pytest.fixture(scope='module')
def page(voila):
    "The workbench in a browser."
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser(), args=FLAGS)
        page = chromium.new_page(viewport=dict(width=1200, height=900)); page.set_default_timeout(WAIT)
        page.goto(voila, wait_until='commit'); button(page, 'Run').wait_for()
        yield page
        chromium.close()


def button(page, name): return page.locator('.udfc button').filter(has_text=re.compile(rf'^\s*{name}\s*$'))


def enabled(page, name): page.wait_for_function("name => [...document.querySelectorAll('button')].some(b => b.innerText.trim() === name && !b.disabled)", arg=name)


def slide(page, value): readout = page.locator('.widget-readout').first; readout.click(); readout.fill(value); readout.press('Enter')


def test_browser_run(page):
    page.get_by_role('combobox').first.select_option(label='digits, ships with the package')
    enabled(page, 'Run'); slide(page, '0.4'); page.get_by_placeholder('float').fill('4')
    button(page, 'Run').click()
    page.get_by_text('best, 0.4, 4 bit').first.wait_for()
    before, after = map(float, re.search(r'accuracy ([\d.]+) → ([\d.]+) %', page.locator('.udfc').inner_text()).groups())
    assert before > 98 and after > 95
    sizes = page.locator('.widget-image').evaluate_all('all => all.map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])')
    assert len(sizes) == 2 and all(done and own > 600 and wide > 300 for done, own, wide in sizes)


def test_browser_stop(page):
    enabled(page, 'Run'); button(page, 'Run').click()
    enabled(page, 'Stop'); button(page, 'Stop').click()
    page.get_by_text('Stopped. The network is as it was.').wait_for()
    enabled(page, 'Run')
    assert page.locator('.udfc table').first.locator('tr').count() == 2 # the trial before, and none more


def test_browser_nonsense(page):
    page.get_by_placeholder('float').fill('four'); button(page, 'Run').click()
    page.get_by_text("'four' is no number").wait_for()
    assert page.get_by_text('What to do').is_visible()


@pytest.mark.parametrize('width', [390, 1200])
def test_browser_nothing_sticks_out(page, width):
    page.set_viewport_size(dict(width=width, height=900)); page.wait_for_timeout(300)
    out = page.locator('.udfc button, .udfc input, .udfc select, .udfc .widget-html').evaluate_all('all => all.map(e => e.getBoundingClientRect()).filter(r => r.width).map(r => r.right)')
    assert len(out) > 10 and max(out) <= width
