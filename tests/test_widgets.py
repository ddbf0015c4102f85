"""The workbench at three levels: its Python object, its notebook in a kernel, and its page in a browser."""
import json, os, re, shutil, subprocess, sys, threading, time
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
import pytest, torch
from torch import nn
from books import FLAGS, browser
from udfc_nb import load
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.app.fields import HELP, PRESETS, devices
from udfc_nb.app.shown import comparison_figure, limits
from udfc_nb.app.subjects import float_bytes, open_network
from udfc_nb.app.trials import Background, read_trials
from udfc_nb.app.structure import structure_figure
from udfc_nb.app.tools import served
from udfc_nb.app.widgets import Workbench

TOP = Path(__file__).resolve().parents[1]
NOTEBOOK = TOP/'nbs'/'app/97_widgets.ipynb'
STATE, VIEW = 'application/vnd.jupyter.widget-state+json', 'application/vnd.jupyter.widget-view+json'


# ---- Python

@pytest.fixture
def bench():
    "A workbench on a network of three layers that takes no time."
    net = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 3)).eval()
    bench = Workbench(net, torch.randn(2, 2, 6, 6),
        lambda m: 100*(m(torch.ones(4, 2, 6, 6)).argmax(1) == 0).double().mean().item())
    bench.c.recipe.value, bench.c.ratio.value = 'paper', .25
    return bench


def press(bench, button, seconds=60):
    getattr(bench.c, button).click()
    assert bench.wait(seconds), f'{button} has not ended after {seconds} s'


@contextmanager
def untouched(model):
    "Fails if anything of the network is different afterwards: weights, buffers, modes, hooks."
    def all_of(m):
        return ({n: t.clone() for n, t in m.state_dict().items()},
            [(k.training, len(k._forward_pre_hooks), len(k._forward_hooks)) for k in m.modules()])
    weights, rest = all_of(model)
    yield
    weights_now, rest_now = all_of(model)
    assert rest == rest_now and all(torch.equal(t, weights_now[n]) for n, t in weights.items())


def test_run_shows_the_result(bench):
    with untouched(bench.subject.model): press(bench, 'run')
    c, trial = bench.c, bench.trials[0]
    assert (c.message.value == '' and c.result.layout.display == ''
        and (c.run.disabled, c.stop.disabled) == (False, True))
    assert f'{trial.before:.1f} → {trial.after:.1f} %' in c.headline.value
    assert ([r['out'] for r in trial.report.rows] == [9, 6, 3] and '9/12' in c.report.value
        and 'paper, 25 % removed, 4 bit' in c.table.value)
    assert (all('<svg' in v and 'role="img" aria-label=' in v for v in (c.structure.value, c.comparison.value))
        and '9 of 12, 25 % cut' in c.structure.value)


def test_settings_reach_compress(bench):
    bench.c.bits.value = '6'
    bench.per_layer['0'][0].value, bench.per_layer['3'][0].value = '0,5', '0'
    bench.per_layer['3'][1].value, bench.per_layer['6'][1].value = '8', 'float'
    press(bench, 'run')
    assert [(r['out'], r['bits']) for r in bench.trials[0].report.rows] == [(6, 6), (8, 8), (3, 32)]


def test_layer_list_says_why(bench):
    rows = bench.c.layers.children[0].children
    assert bench.c.layers.layout.display == 'none'
    bench.c.fold.value = True; assert bench.c.layers.layout.display == 'block'
    assert ['prunable' in r.children[0].value for r in rows] == [True, True, False]
    assert [bench.per_layer[n][0].disabled for n in '036'] == [False, False, True]
    assert ('feeds an output' in rows[2].children[0].value
        and bench.c.fold.description.startswith('Layers: 2 of 3 can lose channels'))


def test_reset(bench):
    bench.per_layer['0'][1].value = '2'
    press(bench, 'run')
    for again in (lambda: setattr(bench.c.ratio, 'value', .2), lambda: setattr(bench.c.bits, 'value', '8')):
        press(bench, 'reset') # asks, and once more after something else was done
        assert len(bench.trials) and 'This deletes' in bench.c.message.value and bench.per_layer['0'][1].value == '2'
        again(); assert 'This deletes' not in bench.c.message.value
    press(bench, 'reset'); assert 'runs (1)' in bench.c.message.value
    press(bench, 'reset')
    assert (bench.c.recipe.value, bench.c.ratio.value, bench.c.bits.value, bench.per_layer['0'][1].value) == ('best',
        .3, '4', '')
    assert bench.trials == [] and bench.c.result.layout.display == 'none'


@pytest.mark.parametrize('moment', [.05, .4])
def test_stop_works_at_any_moment(moment):
    bench = Workbench()
    with untouched(bench.subject.model):
        bench.c.run.click(); time.sleep(moment); bench.c.stop.click()
        assert 'Stopping' in bench.c.message.value # it says so at once
        assert bench.wait(30)
    assert (bench.trials == [] and 'Stopped' in bench.c.message.value and bench.c.bar.value == ''
        and (bench.c.run.disabled, bench.c.stop.disabled) == (False, True))
    bench.c.recipe.value = 'paper'
    press(bench, 'run')
    assert len(bench.trials) == 1 and bench.c.message.value == '' # and it can be started again


def test_stop_that_comes_too_late_leaves_no_message(bench):
    stopping = []
    def slow(): bench.c.stop.click(); stopping.append(bench.c.message.value); type(bench).show(bench)
    bench.show = slow # the work has ended, and its result is being drawn
    press(bench, 'run')
    assert 'Stopping' in stopping[0] and 'had ended before' in bench.c.message.value and len(bench.trials) == 1
    bench.stop(); assert bench.c.message.value == ''


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


def test_stop_is_asked_for_again_where_it_was_lost():
    back, lost = Background(), []
    def work():
        try: time.sleep(.01); [time.sleep(.01) for _ in range(1000)]
        except BaseException as e: lost.append(type(e).__name__)
        while True: time.sleep(.01)
    back.start(work); time.sleep(.05); back.stop()
    assert back.wait(20) and lost == ['Interrupt']


def test_presets(bench):
    floats = float_bytes(bench.subject.model)
    for name, wanted in (('half the size', dict(size_budget=floats//2, layer_bits={'0': None, '3': None, '6': None})),
            ('4 bits', dict(pruning_ratio=0., weight_bits=4)),
            ('fastest', dict(pruning_ratio=.5, weight_bits=8, activation_bits=8, budget='macs'))):
        bench.c.activation_bits.value = '2' # what a preset does not name is as it was at first
        bench.c.presets[name].click()
        got = bench.settings()
        assert ({k: got[k] for k in wanted} == wanted and got['recipe'] == 'paper'
            and (got['activation_bits'] == 8 or name != 'fastest'))
        assert got['activation_bits'] in (None, 8)
    assert set(PRESETS) == set(bench.c.presets)


def test_every_control_has_a_name_and_a_help(bench):
    assert set(bench.c.rows) | {'open'} == set(HELP)
    for name, row in bench.c.rows.items():
        made, said = row.children
        assert made.description and made.tooltip == HELP[name] and 'udfc-help' in said.value
    names = [f.description for pair in bench.per_layer.values() for f in pair]
    assert len(set(names)) == len(names) == 6 and '0, ratio' in names


def test_messages_go_away_when_something_is_changed(bench):
    for change in (lambda: setattr(bench.c.bits, 'value', '5'), lambda: setattr(bench.per_layer['0'][1], 'value', '3'),
            lambda: setattr(bench.c.ratio, 'value', .1), lambda: bench.c.presets['4 bits'].click()):
        bench.c.bits.value = 'four'
        press(bench, 'run'); assert 'is no number' in bench.c.message.value and 'role="alert"' in bench.c.message.value
        change(); assert bench.c.message.value == ''


def test_messages_stand_below_the_button_that_was_pressed(bench, tmp_path):
    bench.c.path.value = str(tmp_path/'a.safetensors')
    where = lambda: [name for name, box in bench.c.spots.items() if bench.c.message in box.children]
    assert where() == ['open']
    for button in ('run', 'save', 'reset', 'save', 'open'):
        press(bench, button); assert where() == ['run' if button == 'reset' else button]


def test_only_the_fields_of_the_goal_are_shown(bench):
    shown = lambda: [n for n in ('ratio', 'bits', 'size') if bench.c.rows[n].layout.display != 'none']
    assert shown() == ['ratio', 'bits']
    bench.c.goal.value = 'size'; assert shown() == ['size']
    bench.c.size.value = 0.; press(bench, 'run'); assert 'is no size' in bench.c.message.value
    bench.c.size.value = 1e-3; press(bench, 'run'); assert 'What to do' in bench.c.message.value and bench.trials == []


@pytest.mark.parametrize('bits, ratio, says',
    [('four', '', 'is no number'), ('99', '', 'bit-width'), ('0', '', 'bit-width'), ('4', 'much', 'is no number'),
    ('4', '1', '0: '), ('4', '-0.1', '0: '),
    ('1e400', '', 'is no number'), ('<b>', '', '&lt;b&gt;')])
def test_nonsense_is_answered(bench, bits, ratio, says):
    bench.c.bits.value, bench.per_layer['0'][0].value = bits, ratio
    with untouched(bench.subject.model): press(bench, 'run')
    assert (says in bench.c.message.value and 'What to do' in bench.c.message.value
        and 'Traceback' not in bench.c.message.value)
    assert bench.trials == [] and not bench.c.run.disabled


def test_an_error_of_the_caller_is_shown(bench):
    def broken(model): raise KeyError('labels <missing>')
    bench.subject.evaluate = broken
    with untouched(bench.subject.model): press(bench, 'run')
    assert ('KeyError' in bench.c.message.value and 'labels &lt;missing&gt;' in bench.c.message.value
        and '<details>' in bench.c.message.value)


def test_network_that_cannot_be_copied():
    class Locked(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.lock = nn.Conv2d(1, 4, 3), threading.Lock()
        def forward(self, x): return self.conv(x)
    bench = Workbench(Locked(), torch.ones(1, 1, 5, 5))
    assert 'What to do' in bench.c.message.value and 'lock' in bench.c.message.value and bench.subject is None
    press(bench, 'run'); assert 'no network is open' in bench.c.message.value


def test_other_networks(bench, tmp_path):
    c = bench.c
    c.network.value = 'named'; bench.wait()
    assert c.rows['name'].layout.display == '' and c.open.layout.display == '' and bench.subject is None
    press(bench, 'open'); assert 'no network is named' in c.message.value
    c.name.value = 'resnet5O'; press(bench, 'open'); assert 'did you mean resnet50' in c.message.value
    c.name.value, c.shape.value = 'squeezenet1_1', '1,3,x'
    press(bench, 'open'); assert 'is no shape' in c.message.value
    c.shape.value = '1,3,64,64'; press(bench, 'open')
    assert 'weights are random' in c.message.value and len(bench.per_layer) == 26
    c.name.value, c.shape.value = 'udfc_nb.data.digits:digits_net', '1,1,8,8'
    for bad, says in (('/nowhere.pt', 'not a file'), (__file__, 'cannot be read')):
        c.weights.value = bad; press(bench, 'open'); assert says in c.message.value
    torch.save(digits_net().state_dict(), tmp_path/'w.pt'); c.weights.value = str(tmp_path/'w.pt'); press(bench, 'open')
    assert c.message.value == '' and len(bench.per_layer) == 16


def test_pickles_that_run_code_are_refused(bench, tmp_path):
    class Bomb:
        def __reduce__(self): return (os.mkdir, (str(tmp_path/'ran'),))
    torch.save({'a': Bomb()}, tmp_path/'bomb.pt')
    bench.c.network.value = 'named'
    bench.c.name.value, bench.c.weights.value = 'squeezenet1_1', str(tmp_path/'bomb.pt')
    press(bench, 'open')
    assert 'could run code' in bench.c.message.value and not (tmp_path/'ran').exists()


def test_save(bench, tmp_path):
    press(bench, 'save'); assert 'no network to save' in bench.c.message.value
    press(bench, 'run')
    bench.c.path.value = str(tmp_path/'a.safetensors'); press(bench, 'save')
    trial, x = bench.trials[0], bench.subject.example
    assert (f'{trial.bytes:,} bytes' in bench.c.message.value
        and (tmp_path/'a.safetensors').stat().st_size == trial.bytes)
    with torch.no_grad(): assert torch.equal(load(tmp_path/'a.safetensors', bench.subject.model)(x), trial.out.model(x))
    bench.c.format.value = '.onnx'; assert bench.c.path.value == str(tmp_path/'a.onnx')
    press(bench, 'save'); assert (tmp_path/'a.onnx').stat().st_size > 0
    bench.c.path.value = 'a.bin'; press(bench, 'save'); assert 'must end in .onnx' in bench.c.message.value
    bench.c.path.value = str(tmp_path/'no'/'a.onnx')
    press(bench, 'save'); assert 'another folder' in bench.c.message.value


def test_without_a_measure():
    bench = Workbench(digits_net(), torch.zeros(1, 1, 8, 8)); bench.c.recipe.value = 'prune'
    press(bench, 'run')
    assert bench.trials[0].after is None and 'of what the original says' in bench.c.headline.value
    assert comparison_figure(bench.trials, 1000).axes[0].get_ylabel().startswith('explained')


def test_networks_of_earlier_trials_are_let_go(bench):
    for _ in range(2): press(bench, 'run')
    assert ([t.out is None for t in bench.trials] == [True, False] and bench.c.table.value.count('<tr>') == 4
        and bench.trials[0].data is None)


def test_axes_are_sensible(bench):
    press(bench, 'run')
    trial = bench.trials[0]
    ax = comparison_figure([trial], float_bytes(bench.subject.model)).axes[0]
    low, high = ax.get_ylim()
    # one trial alone is no cliff
    assert high-low >= 5 and low <= min(trial.before, trial.after) and high >= max(trial.before, trial.after)
    again = comparison_figure([trial, trial], float_bytes(bench.subject.model)).axes[0]
    assert [t.get_text() for t in ax.texts+again.texts] == ['1', '1, 2'] # no number upon another
    left, right = ax.get_xlim()
    # the network as it is stands beside it
    assert left < trial.bytes/1000 < right and left < float_bytes(bench.subject.model)/1000 < right
    for values in ([98.825, 99.], [0., 0.], [100.], [0., 100.], [float('nan')], [3., 4.]):
        low, high = limits(values)
        assert high-low >= 4.9 and -.6 < low < high < 100.6 and all(low <= v <= high for v in values if v == v)


def test_accuracy_on_another_set_is_not_compared(bench, tmp_path):
    press(bench, 'run')
    from PIL import Image
    for i in range(3): (tmp_path/str(i)).mkdir(); Image.new('RGB', (8, 8), (80*i, 0, 0)).save(tmp_path/str(i)/'a.png')
    bench.c.images.value = str(tmp_path); press(bench, 'run')
    assert 'one colour or three' in bench.c.message.value # and this network takes two
    other = Workbench(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3)).eval(), torch.zeros(1, 3, 8, 8))
    other.c.recipe.value = 'prune'; press(other, 'run'); assert other.trials[0].after is None
    other.c.images.value = str(tmp_path); press(other, 'run')
    assert (other.c.message.value == '' and other.trials[1].after is not None
        and other.trials[1].images == f'3 images of {tmp_path}')
    assert len(comparison_figure(other.trials, 1000).axes[0].lines[0].get_xdata()) == 1 # the one with the same measure
    other.c.images.value = str(tmp_path/'nowhere')
    press(other, 'run'); assert 'no such folder' in other.c.message.value


def test_what_is_downloaded_repeats_it(bench, tmp_path, monkeypatch):
    bench = Workbench(); bench.c.recipe.value = 'paper'; press(bench, 'run')
    links = dict(re.findall('download="([^"]+)" href="data:[^,]+,([^"]+)"', bench.c.links.value))
    assert set(links) == {'small.safetensors', 'again.py', 'report.csv'}
    import base64
    (tmp_path/'a.safetensors').write_bytes(base64.b64decode(links['small.safetensors']))
    monkeypatch.chdir(tmp_path); exec(base64.b64decode(links['again.py']).decode(), {})
    x, (a, b) = (torch.randn(4, 1, 8, 8),
        (load(tmp_path/n, digits_net()) for n in ('a.safetensors', 'small.safetensors')))
    with torch.no_grad(): assert torch.equal(a(x), b(x))


def test_runs_are_there_again(tmp_path):
    keep = tmp_path/'runs.json'
    bench = Workbench(keep=keep); bench.c.recipe.value = 'prune'; press(bench, 'run')
    again = Workbench(keep=keep)
    assert again.c.table.value == bench.c.table.value and again.c.result.layout.display == ''
    press(again, 'run'); assert len(read_trials(keep).popitem()[1]) == 2
    again.c.network.value = 'named'
    again.c.name.value, again.c.shape.value = 'udfc_nb.data.digits:DigitsNet', '1,1,8,8'; press(again, 'open')
    assert again.trials == [] # of another network
    keep.write_text('[]'); bench = Workbench(keep=keep)
    assert 'no trials of the workbench' in bench.c.message.value and bench.subject is None


def test_network_by_name():
    bench = Workbench(network='udfc_nb.data.digits:digits_net')
    assert bench.subject is None and 'What to do' in bench.c.message.value # of another shape of inputs
    bench.c.shape.value = '1,1,8,8'; press(bench, 'open'); assert len(bench.per_layer) == 16


def test_figures_are_values_to_pictures(bench):
    press(bench, 'run')
    left, right = structure_figure(bench.structure, bench.trials[0].report).axes
    assert ([p.get_width() for p in right.patches[3:]] == [75, 75, 100]
        and [t.get_text() for t in left.get_yticklabels()] == ['0', '3', '6'])


def test_devices(): assert devices()[0] == 'cpu' and len(devices()) == 1+torch.cuda.device_count()


@pytest.mark.gpu
def test_resnet50_on_cuda():
    bench = Workbench(open_network('resnet50').model, torch.zeros(1, 3, 224, 224))
    bench.c.device.value, bench.c.ratio.value = 'cuda:0', .4
    start = time.perf_counter()
    with untouched(bench.subject.model): press(bench, 'run', 600)
    assert bench.c.message.value == '' and next(bench.trials[0].out.model.parameters()).device.type == 'cpu'
    print(f"ResNet-50 on {torch.cuda.get_device_name()}: compress {bench.trials[0].seconds:.1f} s, with measuring and "
        f"figures {time.perf_counter()-start:.1f} s")


# ---- kernel

def check_state(nb):
    "The state that a notebook was saved with holds its views, and everything that they lead to."
    views = [o['data'][VIEW]['model_id'] for c in nb['cells'] for o in c.get('outputs', ())
        if VIEW in o.get('data', {})]
    state = nb['metadata']['widgets'][STATE]['state']
    todo, seen = list(views), set()
    while todo:
        if (i := todo.pop()) in seen: continue
        assert i in state, f'widget {i} is shown or referred to, but its state is not saved'
        seen.add(i); todo += re.findall('IPY_MODEL_([0-9a-f]+)', json.dumps(state[i]['state']))
    shown = [state[i] for i in seen]
    assert views and any('accuracy' in str(s['state'].get('value')) for s in shown if s['model_name'] == 'HTMLModel')
    assert sum('<svg' in str(s['state'].get('value')) for s in shown) == 2
    return seen, state


def test_saved_state():
    seen, state = check_state(json.loads(NOTEBOOK.read_text()))
    assert seen == set(state), (
        'the notebook carries the state of widgets that no view shows: run .ci/execute nbs/app/97_widgets.ipynb')


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

PICTURES = os.environ.get('UDFC_PICTURES') # a folder for a picture of each task; '' or not set: none are taken
WAIT = 120_000 # milliseconds; the first page has a kernel to start, and machines differ


@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    "The address of a workbench, as `udfc workbench` serves it."
    browser(); pytest.importorskip('voila')
    here, folder = os.getcwd(), tmp_path_factory.mktemp('voila')
    os.environ['PYTHONPATH'], before = (os.pathsep.join(filter(None, [str(TOP), os.environ.get('PYTHONPATH')])),
        os.environ.get('PYTHONPATH'))
    os.chdir(folder)
    try:
        with served(keep='runs.json') as (address, _): yield address
    finally:
        os.chdir(here)
        if before is None: del os.environ['PYTHONPATH']
        else: os.environ['PYTHONPATH'] = before


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


def photo(page, name, width=1200):
    "A picture of the whole form, for people to look at."
    if not PICTURES: return
    before = page.viewport_size
    page.set_viewport_size(dict(width=width, height=900)); page.wait_for_timeout(300)
    height = page.locator('.udfc').evaluate('e => Math.ceil(e.getBoundingClientRect().height)')
    page.set_viewport_size(dict(width=width, height=height+80)); page.wait_for_timeout(300)
    Path(PICTURES).mkdir(parents=True, exist_ok=True); page.screenshot(path=Path(PICTURES, f'{name}.png'))
    page.set_viewport_size(before)


def seen(page, text):
    "Is a text there, and in sight without scrolling?"
    found = page.get_by_text(text).first; found.wait_for(); box = found.bounding_box()
    return 0 <= box['y'] and box['y']+box['height'] <= page.viewport_size['height']


def button(page, name): return page.locator('.udfc button').filter(has_text=re.compile(rf'^\s*{name}\s*$'))


def enabled(page, name):
    page.wait_for_function("name => [...document.querySelectorAll('button')].some(b => b.innerText.trim() === name && "
        "!b.disabled)", arg=name)


def arrived(page, field, value):
    "Waits until what a preset fills in stands there: what is typed before would be mixed with it."
    pytest.importorskip('playwright.sync_api').expect(page.get_by_label(field)).to_have_value(value, timeout=WAIT)


# without the head and the network as it is
def runs(page): return page.locator('.udfc table').first.locator('tr').count()-2


def test_browser_has_names(page):
    "Everything that can be used has a name for those who listen, and can be reached by the keyboard."
    said = page.locator('.udfc').aria_snapshot()
    for what in ('combobox "network"', 'spinbutton "remove, share"', 'textbox "weights, bits"',
            'button "half the size"', 'heading "1. The network"', 'img "The 16 layers of digits'):
        assert what in said
    nameless = page.locator('.udfc :is(input, select, button)').evaluate_all(
        'all => all.filter(e => e.getBoundingClientRect().width && !(e.innerText || "").trim() && !(e.labels || '
        '[]).length).map(e => e.outerHTML)')
    assert nameless == []
    enabled(page, 'Run'); photo(page, '01 load')


def test_browser_keyboard(page):
    "A run without a mouse: Tab, letters, Enter."
    def tab_to(what):
        for _ in range(40):
            at = page.evaluate('() => { const e = document.activeElement; '
                'return e.labels?.[0]?.innerText?.trim() || e.innerText?.trim() || "" }')
            if at == what: return
            page.keyboard.press('Tab')
        raise AssertionError(f'{what} is not reached')
    page.get_by_label('network', exact=True).focus()
    tab_to('4 bits'); page.keyboard.press('Enter')
    tab_to('weights, bits'); page.keyboard.press('Control+A'); page.keyboard.type('6')
    tab_to('recipe'); page.keyboard.type('fast')
    tab_to('Run'); photo(page, '02 keyboard'); page.keyboard.press('Enter')
    page.get_by_text('fast, 0 % removed, 6 bit').first.wait_for(); enabled(page, 'Run'); assert runs(page) == 1
    tab_to('Reset'); page.keyboard.press('Enter'); page.get_by_text('Press Reset again').wait_for()
    assert runs(page) == 1; page.keyboard.press('Enter')
    page.wait_for_function("() => ![...document.querySelectorAll('.udfc table')].some(t => t.checkVisibility())")
    assert page.get_by_label('weights, bits').input_value() == '4'


def test_browser_run_and_compare(page):
    enabled(page, 'Run'); page.get_by_label('recipe', exact=True).select_option('fast')
    button(page, '4 bits').click(); button(page, 'Run').click()
    page.get_by_text('fast, 0 % removed, 4 bit').first.wait_for(); enabled(page, 'Run')
    before, after = (map(float, re.search(r'accuracy ([\d.]+) → ([\d.]+) %',
        page.locator('.udfc').inner_text()).groups()))
    assert before > 98 and after > 95
    page.get_by_label('remove, share').fill('0.4'); page.keyboard.press('Tab'); button(page, 'Run').click()
    page.get_by_text('fast, 40 % removed, 4 bit').first.wait_for(); enabled(page, 'Run')
    assert runs(page) == 2
    sizes = page.locator('.udfc-picture svg').evaluate_all('all => all.map(i => i.getBoundingClientRect().width)')
    assert len(sizes) == 2 and min(sizes) > 500
    wide = page.locator('.udfc table').first.evaluate('t => [t.scrollWidth, t.parentElement.clientWidth]')
    assert wide[0] <= wide[1] # every column is in sight
    photo(page, '03 compare')


def test_browser_download(page):
    for name, start in (('the packed file', None), ('Python that repeats it', b'from udfc_nb import compress')):
        with page.expect_download() as told: page.get_by_role('link', name=name).click()
        data = Path(told.value.path()).read_bytes()
        assert data.startswith(start) if start else b'udfc_nb' in data[:20000] and len(data) > 10000
    page.get_by_text('Show the Python').click(); assert page.get_by_text('small = compress(model').is_visible()
    photo(page, '04 download'); page.get_by_text('Show the Python').click()


@pytest.mark.parametrize('preset', PRESETS)
def test_browser_stop(page, preset):
    enabled(page, 'Run')
    page.get_by_label('recipe', exact=True).select_option('best')
    button(page, preset).click()
    page.evaluate("""() => { window.said = []; new MutationObserver(() => document.querySelectorAll(
        '.udfc [role=status]').forEach(e => said.push(e.innerText))).observe(document.querySelector('.udfc'),
        {subtree: true, childList: true}) }""") # it stands there for a moment only
    button(page, 'Run').click(); enabled(page, 'Stop'); page.get_by_text('step ').first.wait_for()
    photo(page, f'05 running, {preset}')
    start = time.perf_counter(); button(page, 'Stop').click()
    page.get_by_text('Stopped. The network is as it was.').wait_for()
    print(f'{preset}: stopped {time.perf_counter()-start:.2f} s after it was asked for')
    assert any('Stopping' in s for s in page.evaluate('said')) # it says so at once
    enabled(page, 'Run'); photo(page, f'06 stopped, {preset}')
    assert runs(page) == 2 # those before, and none more


def test_browser_nonsense(page):
    button(page, '4 bits').click(); arrived(page, 'weights, bits', '4')
    page.get_by_label('weights, bits').fill('four'); button(page, 'Run').click()
    page.get_by_role('alert').get_by_text("'four' is no number").wait_for()
    assert seen(page, 'What to do'); photo(page, '07 wrong input')
    page.get_by_label('weights, bits').fill('4'); page.keyboard.press('Tab')
    page.get_by_text("'four' is no number").wait_for(state='hidden')


def test_browser_layers(page):
    fold, report = page.get_by_role('button', name='Layers: 6 of 16'), page.get_by_text('Report, layer by layer')
    fold.click(); page.get_by_label('conv1, bits', exact=True).fill('nine'); button(page, 'Run').click()
    page.get_by_text('conv1, bits').first.wait_for(); page.get_by_role('alert').wait_for()
    page.get_by_label('conv1, bits', exact=True).fill('8'); page.keyboard.press('Tab')
    page.get_by_role('alert').wait_for(state='hidden')
    page.get_by_label('layer1.0.conv1, ratio', exact=True).fill('0.5'); page.keyboard.press('Tab')
    page.get_by_label('recipe', exact=True).select_option('fast'); button(page, 'Run').click()
    page.get_by_text('fast, 0 % removed, 4 bit, layers of their own').first.wait_for(); enabled(page, 'Run')
    report.click(); told = page.get_by_role('row', name='conv1 ').all_inner_texts()
    assert any(re.match(r'conv1\s+16/16\s+1/1\s+8', t) for t in told) and any('8/16' in t for t in told)
    photo(page, '08 layers'); report.click()
    for name in ('conv1, bits', 'layer1.0.conv1, ratio'): page.get_by_label(name, exact=True).fill('')
    page.keyboard.press('Tab'); fold.click()


def test_browser_own_images(page, tmp_path):
    from PIL import Image
    x, y = digits('test')
    for i in range(60):
        (folder := tmp_path/str(y[i].item())).mkdir(exist_ok=True)
        Image.fromarray((255*(x[i, 0]-x.min())/(x.max()-x.min())).byte().numpy()).save(folder/f'{i}.png')
    page.get_by_label('your images').fill(str(tmp_path/'nowhere')); button(page, 'Run').click()
    page.get_by_role('alert').get_by_text('no such folder').wait_for(); assert seen(page, 'no such folder')
    page.get_by_label('your images').fill(str(tmp_path)); page.keyboard.press('Tab')
    page.get_by_role('alert').wait_for(state='hidden'); button(page, 'Run').click()
    page.get_by_text(f'(60 images of {tmp_path})').first.wait_for(); enabled(page, 'Run'); photo(page, '09 own images')
    assert runs(page) == 4
    page.get_by_label('your images').fill(''); page.keyboard.press('Tab')


def test_browser_half_the_size(page):
    button(page, 'half the size').click(); button(page, 'Run').click()
    page.get_by_text('channels only').first.wait_for(); enabled(page, 'Run'); photo(page, '10 preset')
    assert 45 < float(re.search(r'file [\d.]+ kB, (\d+) % of', page.locator('.udfc').inner_text())[1]) <= 50


def test_browser_save(page):
    page.get_by_label('to the file').fill('here.safetensors'); button(page, 'Save').click()
    page.get_by_role('status').get_by_text('Written:').wait_for(); assert seen(page, 'Written:'); photo(page, '11 save')
    page.get_by_label('to the file').fill('/no/such/folder/a.safetensors'); button(page, 'Save').click()
    page.get_by_role('alert').get_by_text('choose another folder').wait_for()


def test_browser_goes_on_after_a_reload(page):
    page.reload(wait_until='commit'); button(page, 'Run').wait_for(); enabled(page, 'Run')
    page.get_by_text('fast, 40 % removed, 4 bit').first.wait_for()
    assert runs(page) == 5; photo(page, '12 resume')


def test_browser_in_the_dark(page):
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = ground(); page.emulate_media(color_scheme='dark')
    try:
        letters = page.locator('.udfc h2').first.evaluate('e => getComputedStyle(e).color')
        assert (ground() != light and sum(map(int, re.findall(r'\d+', ground())[:3])) < 100 < 600 < sum(map(int,
            re.findall(r'\d+', letters)[:3])))
        photo(page, '13 dark'); photo(page, '13 dark, 390', 390)
    finally: page.emulate_media(color_scheme='light')


def test_browser_another_network(page):
    page.get_by_label('network', exact=True).select_option(label='another one, by its name')
    page.get_by_label('name', exact=True).fill('resnet81'); button(page, 'Open').click()
    assert seen(page, 'did you mean resnet18'); photo(page, '14 wrong name')
    page.get_by_label('name', exact=True).fill('torchvision:squeezenet1_1')
    page.get_by_label('shape of the input').fill('1,3,64,64'); button(page, 'Open').click()
    page.get_by_role('button', name='of 26 can lose channels').wait_for(); photo(page, '15 another network')
    page.get_by_label('network', exact=True).select_option(label='digits, ships with the package')
    page.get_by_text('fast, 40 % removed, 4 bit').first.wait_for()


@pytest.mark.parametrize('width', [390, 1400])
def test_browser_nothing_sticks_out(page, width):
    page.set_viewport_size(dict(width=width, height=900)); page.wait_for_timeout(300)
    out = page.locator('.udfc button, .udfc input, .udfc select, .udfc .widget-html').evaluate_all(
        'all => all.map(e => e.getBoundingClientRect()).filter(r => r.width).map(r => r.right)')
    assert len(out) > 10 and max(out) <= width; photo(page, f'16 {width}', width)
