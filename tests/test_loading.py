from __future__ import annotations

import json
import sys

import pytest
from torch import nn

from hyperprune.cli import main
from hyperprune.coupling import CouplingMap
from hyperprune.errors import ModelError
from hyperprune.loading import load_model


def build_small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def build_wide(width: int, head: str = "none") -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Identity() if head == "none" else nn.Flatten())


def build_nothing() -> str:
    return "not a module"


def build_failing() -> nn.Module:
    raise ValueError("no licence")


class TestNames:
    def test_torchvision_models_come_by_name(self):
        assert type(load_model("torchvision/squeezenet1_0").model).__name__ == "SqueezeNet"

    def test_segmentation_models_ask_for_no_backbone_weights(self):
        assert type(load_model("torchvision/lraspp_mobilenet_v3_large").model).__name__ == "LRASPP"

    def test_timm_models_bring_their_own_input_size(self):
        assert load_model("timm/botnet26t_256").input_size == (3, 256, 256)

    def test_arguments_may_say_another_input_size(self):
        assert load_model("timm/resnet10t,in_chans=1").input_size[0] == 1
        assert load_model("timm/vit_tiny_patch16_224,img_size=(64,96)").input_size == (3, 64, 96)
        assert load_model("timm/vit_tiny_patch16_224,img_size=64").input_size == (3, 64, 64)

    def test_a_factory_of_ones_own_is_called(self):
        assert isinstance(load_model(f"{__name__}:build_small").model, nn.Sequential)

    @pytest.mark.parametrize("spec", ["timm/resnet10t,num_classes=5", "torchvision/resnet18,num_classes=5"])
    def test_arguments_follow_the_name(self, spec):
        assert load_model(spec).model.fc.out_features == 5

    def test_arguments_of_a_factory_are_numbers_and_words(self):
        model = load_model(f"{__name__}:build_wide,width=6,head=flat").model
        assert model[0].out_channels == 6
        assert isinstance(model[1], nn.Flatten)

    @pytest.mark.parametrize(
        ("spec", "hint"),
        [
            ("resnet50", "timm/resnet50"),
            ("timm/resnet5", "Did you mean"),
            ("torchvision/resnet19", "Did you mean"),
            ("no_such_module:f", "cannot be imported"),
            (f"{__name__}:build_nothing", "returned str"),
            (f"{__name__}:build_small,width=3", "cannot be built with width=3"),
            (f"{__name__}:build_wide", "cannot be built without arguments; write them as in"),
            (f"{__name__}:build_failing", "fails: ValueError: no licence"),
            (":build_small", "names no model"),
            ("torchvision/resnet18,classes=3", "cannot be built with classes=3"),
            ("timm/resnet10t,5", "no argument"),
            ("timm/resnet10t,num_classes=", "no argument"),
            ("torchvision/resnet18,weights=NoSuch", "torchvision/resnet18 fails: KeyError: 'NoSuch'"),
            ("timm/resnet10t,output_stride=7", "timm/resnet10t fails: AssertionError"),
        ],
    )
    def test_a_name_that_is_not_understood_is_an_error_that_helps(self, spec, hint):
        with pytest.raises(ModelError, match=hint):
            load_model(spec)

    def test_what_the_librarys_weights_do_not_fit_is_refused(self):
        with pytest.raises(ModelError, match=r"torchvision/resnet18 fails: ValueError: .*num_classes"):
            load_model("torchvision/resnet18,num_classes=5", pretrained=True)

    def test_an_argument_may_hold_commas_in_brackets(self):
        model = load_model("timm/vit_tiny_patch16_224,img_size=(64,32),depth=1").model
        assert model.patch_embed.grid_size == (4, 2)
        assert len(model.blocks) == 1

    def test_a_factory_has_no_weights_to_be_asked_for(self):
        with pytest.raises(ModelError, match="brings what weights it has"):
            load_model(f"{__name__}:build_small", pretrained=True)

    def test_a_factory_in_the_users_folder_is_found(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "nets_of_a_user.py").write_text(
            "from torch import nn\ndef small():\n    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        assert main(["inspect", "nets_of_a_user:small", "--input", "4"]) == 0
        assert "8 units" in capsys.readouterr().out


class TestInspect:
    def test_the_table_names_groups_and_what_stays(self, capsys):
        assert main(["inspect", f"{__name__}:build_small", "--input", "3x16x16"]) == 0
        printed = capsys.readouterr().out
        assert "1 groups, 8 units" in printed
        assert "stays: 2, 4 channels: is the model's output" in printed

    def test_json_reads_back_as_the_same_coupling(self, capsys):
        assert main(["inspect", f"{__name__}:build_small", "--input", "3x16x16", "--json"]) == 0
        coupling = CouplingMap.from_json(json.loads(capsys.readouterr().out))
        assert coupling.units == 8
        assert coupling.group("0").readers == ("2",)

    def test_one_layer_is_explained_in_words(self, capsys):
        assert main(["inspect", f"{__name__}:build_small", "--input", "3x16x16", "--layer", "0"]) == 0
        assert "8 units of 1 channel" in capsys.readouterr().out

    def test_an_unknown_layer_is_refused_with_the_known_ones(self, capsys):
        assert main(["inspect", f"{__name__}:build_small", "--input", "3x16x16", "--layer", "nope"]) == 1
        assert "it met: 0, 2" in capsys.readouterr().err

    @pytest.mark.parametrize("size", ["3x16", "abc", "3x0x16", "axb"])
    def test_a_size_that_is_none_is_wrong_usage_or_refused(self, size, capsys):
        try:
            status = main(["inspect", f"{__name__}:build_small", "--input", size])
        except SystemExit as stop:
            status = stop.code
        assert status in (1, 2)
        assert capsys.readouterr().err
