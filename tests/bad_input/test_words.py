"""Wrong words on the command line and in config files."""

import shlex
import shutil

import pytest
from samples import picture


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("trian", ["trian", "'train'"]),
        ("--versio", ["--versio", "'--version'"]),
        ("train REST --epoch 3", ["--epoch", "'--epochs'"]),
        ("train REST --image_size 3", ["--image_size", "'--image-size'"]),
        ("train REST extra", ["'extra'"]),
        ("train --data digits --output run", ["--model"]),
        ("train", ["--model", "--data", "--output"]),
        ("train REST --epochs", ["--epochs"]),
        ("train REST --epochs many", ["--epochs", "many", "whole number"]),
        ("train REST --epochs 1.5", ["--epochs", "1.5"]),
        ("train REST --image-size big", ["--image-size", "big", "whole number"]),
        ("train REST --lr fast", ["lr", "fast", "a number"]),
        ("train REST --augment weak", ["--augment", "weak", "none, flip, light, strong"]),
        ("train REST --model-args 3", ["--model-args", "3"]),
        ("train REST --epochs 0", ["epochs", "0"]),
        ("train REST --lr -1", ["lr", "-1"]),
        ("train REST --optimizer adamm", ["optimizer", "'adam'"]),
        ("train REST --optimizer lion --lr 1e-3 --opt-betas [0.9]", ["opt_betas", "lion has 2"]),
        ("train REST --freeze '1e400 steps'", ["freeze", "no duration"]),
        ("train REST --workers 999999", ["workers", "512"]),
        ("train REST --loader memory --workers 2", ["workers", "memory"]),
        ("train REST --model inceptionnext_debu", ["'inceptionnext_debug'"]),
        (
            "train REST --model inceptionnext_debug --model-args '{bandkernel: 7}'",
            ["bandkernel", "'band_kernel_size'"],
        ),
        ("train REST --model inceptionnext_debug --image-size 1", ["1", "--image-size"]),
        ("train --config none.yaml", ["none.yaml"]),
        ("train --config", ["--config"]),
        ("predict", ["IMAGE"]),
        ("predict a.png", ["--checkpoint"]),
        ("predict a.png --checkpoint run --topk 0", ["--topk", "0"]),
        ("predict a.png --checkpoint run --top 3", ["--top", "'--topk'"]),
        ("predict a.png --checkpoint run --topk two", ["--topk", "two"]),
        ("evaluate run --batch-size 0", ["--batch-size", "0"]),
        ("evaluate run --workers -1", ["--workers", "-1"]),
        ("errors", ["RUN", "--checkpoint", "xnext errors --help"]),
        ("errors none", ["no run and no weight file", "none"]),
        ("errors none --cout 3", ["--cout", "'--count'"]),
        ("errors none --count many", ["--count", "many", "whole number"]),
        ("cam a.png --checkpoint run", ["--output"]),
        ("cam a.png --checkpoint run --output map.jpg", ["map.jpg", ".png"]),
        ("models --filter nothing*", ["nothing*"]),
        ("compare", ["RUN", "xnext compare --help"]),
        ("compare none", ["none is not a run"]),
        ("compare run --output curves.pdf", ["curves.pdf", ".png"]),
        ("data", ["SPEC", "xnext data --help"]),
        ("data digit", ["'digits'"]),
        ("data ''", ["empty"]),
        ("data digits --outpt a.png", ["--outpt", "'--output'"]),
        ("data digits --seed -1", ["--seed", "-1"]),
        ("data digits --seed one", ["--seed", "one", "whole number"]),
        ("data digits --output sheet.jpg", ["sheet.jpg", ".png"]),
        ("data digits --output none/sheet.png", ["none/sheet.png", "folder does not exist"]),
        ("train REST --recipe nexception_x", ["'nexception_t'"]),
        ("train REST --recipe", ["--recipe"]),
        ("recipes xception", ["'xception_imagenet'"]),
        ("train REST --model inceptionnext_atto.foo", ["inceptionnext_atto", "'foo'"]),
        ("train REST --model INCEPTIONNEXT_ATTO", ["'inceptionnext_atto'"]),
        ("train REST --model timm/foo", ["timm/foo"]),
        ("train REST --model ../x", ["../x"]),
        ("train REST --model local-dir:d", ["local-dir:d"]),
        ("train REST --model legacy_xception --drop-path-rate 0.1", ["legacy_xception", "drop_path_rate"]),
        ("train REST --model xception_debug --model-args '{head_widths: [-3]}'", ["head_widths"]),
        ("train REST --model xception_debug --image-size 99999999999", ["image_size", "4096"]),
        ("train REST --model xception_debug --optimizer adahessian --lr 1e-3", ["adahessian"]),
        ("train REST --model xception_debug --cutmix 1e400", ["cutmix"]),
        ("models --jso", ["--jso", "'--json'"]),
        ("predict '' --checkpoint run", ["empty"]),
        ("train REST --data=", ["empty"]),
        ("train REST --optimizer zzz", ["zzz", "adamw"]),
        ("train REST --model qqq", ["qqq", "xnext models"]),
        ("train REST --model inceptionnext_debug --model-args '{dims: 16}'", ["dims", "whole numbers"]),
        ("train REST --model inceptionnext_debug --model-args '{in_chans: 1}'", ["'in_chans'"]),
        ("train REST --model inceptionnext_debug --model-args '{pretrained: true}'", ["pretrained"]),
        ("train REST --model inceptionnext_debug --model-args '{global_pool: 3}'", ["global_pool"]),
        ("train REST --model resnet18 --model-args '{dims: [1]}'", ["resnet18", "model_args"]),
    ],
)  # fmt: skip
def test_a_word_that_is_wrong(fails, tmp_path, monkeypatch, words, names):
    monkeypatch.chdir(tmp_path)
    fails(*shlex.split(words.replace("REST", "--model x --data digits --output run")), names=names)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("epocs: 3\n", ["'epocs'", "'epochs'", "recipe.yaml"]),
        ("epochs: many\n", ["epochs", "many"]),
        ("augment: weak\n", ["augment", "weak"]),
        ("optimizer: adamm\n", ["optimizer", "'adam'"]),
        ("image_size: [32]\n", ["image-size", "32"]),
        ("a: [1\n", ["recipe.yaml"]),
        ("- epochs\n", ["recipe.yaml", "key: value"]),
        ("", ["recipe.yaml", "key: value"]),
        ("\x00", ["recipe.yaml"]),
        (b"\xff\xfe\xfa", ["recipe.yaml"]),
        ("3: 4\n", ["recipe.yaml", "3"]),
        ("epochs: 1\nepochs: 2\n", ["recipe.yaml", "duplicate", "epochs"]),
        ("epochs: null\n", ["epochs"]),
        ("{[1]: 2}", ["recipe.yaml"]),
        ("!!python/name:os.system x", ["recipe.yaml"]),
        ("model_args: {no_such: 1}\nmodel: inceptionnext_debug\n", ["no_such"]),
    ],
)
def test_a_config_file_that_is_wrong(fails, tmp_path, content, names):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["train", "--config", file, "--data", "digits", "--output", tmp_path / "run"]
    if not (isinstance(content, str) and "model:" in content):
        words += ["--model", "inceptionnext_debug"]
    fails(*words, names=names)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ("a: [1", ["config.yaml", "line 1"]),
        ("", ["config.yaml", "key: value"]),
        ("model: inceptionnext_debug", ["--data"]),
        ("data: digits\ndata: digits", ["data"]),
        (("epochs: 30", "epochs: '5'"), ["epochs", "5"]),
        (("seed: 0", "seed: -3"), ["seed", "-3"]),
        (("seed: 0", "seed: 1.5"), ["seed", "a whole number"]),
        (("epochs: 30", "epoch: 30"), ["'epoch'", "'epochs'"]),
    ],
    ids=str,
)
def test_a_run_whose_config_was_damaged(fails, trained, tmp_path, damage, names):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    file = run / "config.yaml"
    file.write_text(damage if isinstance(damage, str) else file.read_text().replace(*damage))
    fails("train", "--resume", run, names=names)


def test_words_that_do_not_go_with_a_run_that_goes_on(fails, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    fails("train", "--resume", run, "--output", tmp_path / "other", names=["--output", "other"])
    fails("train", "--resume", run, "--recipe", "small_images", names=["model was", "--checkpoint"])


def test_an_unknown_class_to_look_for(fails, trained, tmp_path):
    picture().save(tmp_path / "a.png")
    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png", "--target"]
    fails(*words, "ow", names=["'owl'"])
    fails(*words, "3", names=["'3'"])
