"""The ESPnet tasks that train the systems: options, their checks, data and batches."""

import argparse
import dataclasses
import functools
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

from espnet_speechllm_xl.training import compat

with compat.without_notice():
    from espnet2.tasks import abs_task

from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool, str_or_none
from torch import distributed, nn, optim

from espnet_speechllm_xl.config import LossConfig, SearchConfig
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.decoding.joint_ctc import check_joint
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.model.ctc_spelling import Spelling, make_spelling
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import sequence_length
from espnet_speechllm_xl.settings import ConfigError, from_dict, read_yaml, shown
from espnet_speechllm_xl.systems.base_system import Choices, System
from espnet_speechllm_xl.tokenization import load_tokenizer
from espnet_speechllm_xl.training.batches import BatchFactory, Preprocessor, collate
from espnet_speechllm_xl.training.checks import (
    BATCH_OPTIONS,
    FEATURES,
    TRAINING_SETTINGS,
    check_init_features,
    check_numbers,
    check_optimiser,
    check_rate,
    check_statistics,
    check_values,
    encoder_to_begin_with,
    has_normaliser,
    read_first_ints,
    read_token_list,
)
from espnet_speechllm_xl.training.layers import check_backend
from espnet_speechllm_xl.training.prompts import PromptMaker
from espnet_speechllm_xl.training.rates import read_factors, split_groups
from espnet_speechllm_xl.training.schedule import SCHEDULERS
from espnet_speechllm_xl.training.tokenizer import keep_ctc_tokenizer
from espnet_speechllm_xl.training.trainer import Trainer, keep_settings, load_part, matmul_precision, replaced

abs_task.scheduler_classes.update(SCHEDULERS)  # ESPnet's --scheduler has no other way in


@functools.cache
def espnet_task(system: type[System]) -> "type[SpeechTask]":
    """Return the ESPnet task of a system: ``SpeechLLMXLTask`` of ``SpeechLLMXLSystem``, of the same module.

    ESPnet hands it to other processes by its name, by which the module has it, too.
    """
    name = f"{system.__name__.removesuffix('System')}Task"
    about = {"__module__": system.__module__, "__doc__": f"{system.__doc__}  The ESPnet task."}
    parts = [_class_choices(choices) for choices in system.part_choices]
    fields = {**about, "system": system, "class_choices_list": parts}
    return types.new_class(name, (SpeechTask,), exec_body=lambda namespace: namespace.update(fields))


def _class_choices(choices: Choices) -> ClassChoices:
    return ClassChoices(choices.name, dict(choices.classes), default=choices.default)


class SpeechTask(abs_task.AbsTask):
    """Base of the tasks, of which :func:`espnet_task` makes one for a system."""

    system: ClassVar[type[System]]
    num_optimizers = 1
    trainer = Trainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options beyond ESPnet's own; every ``*_conf`` section is a dataclass of config.py."""
        group = parser.add_argument_group(f"{cls.system.name} options")
        required = parser.get_default("required")
        required += ["token_list", "tokenizer"]
        group.add_argument("--task", default=cls.system.name, choices=[cls.system.name], help="Kept in config.yaml")
        group.add_argument("--token_list", default=None, help="File with one token a line, in the tokenizer's order")
        group.add_argument("--tokenizer", default=None, help="sentencepiece model, or directory of a HF tokenizer")
        group.add_argument(
            "--normalize",
            default="global_mvn",
            help="global_mvn: mean and variance of the training set (utterance-wise cannot stream)",
        )
        group.add_argument("--stats_file", default=None, help="feats_stats.npz of the statistics stage")
        group.add_argument(
            "--matmul_precision",
            default="medium",
            choices=["highest", "high", "medium"],
            help="Of float32 matrix products in training (torch.set_float32_matmul_precision): medium is the fastest "
            "and allows bfloat16 or TF32 inside a product",
        )
        group.add_argument(
            "--compile_layers",
            type=str_or_none,
            default=None,
            metavar="BACKEND",
            help="Compile each layer of encoder and decoder in training by this backend of torch.compile, such as "
            "inductor (which needs a C++ compiler, and triton on a GPU); null: do not compile",
        )
        group.add_argument(
            "--recompute_layers",
            type=str2bool,
            default=False,
            help="Compute each layer again in the backward pass instead of keeping what is in it (activation "
            "checkpointing): less memory, longer steps, the same gradients",
        )
        group.add_argument(
            "--part_rates",
            action=NestedDictAction,
            default={},
            help="Factors of the learning rate of parts of the model, such as {acoustic: 0.1, decoder: {lm: 0.5}}; "
            "the others have 1",
        )
        for section, conf in cls.system.sections.items():
            default, text = dataclasses.asdict(conf()), (conf.__doc__ or "").split("\n")[0]
            group.add_argument(f"--{section}", action=NestedDictAction, default=default, help=text)
        for section, part in cls.system.part_sections.items():
            text = f"The keyword arguments of ESPnet's {part.__name__}"
            group.add_argument(f"--{section}", action=NestedDictAction, default=get_default_kwargs(part), help=text)
        for choices in (*cls.class_choices_list, _class_choices(cls.system.search_choices)):
            choices.add_arguments(group)
        search = dataclasses.asdict(SearchConfig())
        del search["method"]  # that is --search
        parser.set_defaults(search_conf=search)
        parser.set_defaults(
            iterator_type="task",
            best_model_criterion=[cls.system.criterion],
            early_stopping_criterion=cls.system.criterion,
            num_att_plot=0,
            use_matplotlib=False,
            num_workers=0,
        )

    @classmethod
    def print_config(cls, file: TextIO | None = None) -> None:
        """Print every option with its value; ESPnet's default is what standard output was at its import."""
        super().print_config(sys.stdout if file is None else file)

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train as ESPnet does; ``--init_param`` leaves nothing unloaded, no run resumes with other settings.

        Where the YAML has no encoder_conf, the encoder takes the settings of the model that training begins with.
        """
        cls.system.check_sections(args)
        if not args.config or not read_yaml(args.config).get("encoder_conf"):
            args.encoder_conf = {**encoder_to_begin_with(args.init_param, args.encoder), **args.encoder_conf}
        cls.check_options(args)
        if not args.collect_stats:
            keep_settings(Path(args.output_dir), cls.training_settings(args), args.resume)
            if ctc_tokenizer := cls._ctc_tokenizer(args):
                keep_ctc_tokenizer(ctc_tokenizer, Path(args.output_dir))
        # Plain products have transposed views, which torch 2.11 cannot compile where their sizes are variables.
        plain_attention = not args.ngpu and args.compile_layers is None
        precision = matmul_precision(args.matmul_precision, on_cpu=plain_attention)
        with replaced(abs_task, "load_pretrained_model", load_part), precision:
            super().main_worker(args)
        if args.collect_stats:
            with atomic_write(Path(args.output_dir) / FEATURES) as stream:
                json.dump(dataclasses.asdict(cls.system.section(args, "features_conf")), stream)
        if distributed.is_initialized():
            # Left to the end of the process, gloo's threads now and then abort it after a training that was finished.
            distributed.destroy_process_group()

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None) -> None:
        """Run ESPnet's main; a wrong command line or ``--config`` raises ConfigError."""
        super().main(args=cls.parse(cmd) if args is None else args)

    @classmethod
    def parse(cls, cmd: Sequence[str] | None) -> argparse.Namespace:
        """Return the options of a command line and of its ``--config``, whose values ESPnet takes unchecked."""
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config.add_argument("--config")
        file = config.parse_known_args(cmd)[0].config
        parser = cls.get_parser()
        if file is not None and Path(file).exists():
            # The command line appends to what these have in the file, whatever that is.
            several: list[argparse.Action] = [
                action for action in parser._actions if isinstance(action, argparse._AppendAction)
            ]
            check_values(argparse.Namespace(**read_yaml(file)), several)
        parser.error = _refuse  # in place of the usage, which is hundreds of lines
        try:
            args = parser.parse_args(cmd)
        except UserError:
            raise
        except Exception as error:  # of YAML, of sizes such as 10MB: any kind
            raise ConfigError(f"an option or a value of --config cannot be read ({error}): mend it") from error
        check_values(args, cls.get_parser()._actions)
        return args

    @classmethod
    def check_required_command_args(cls, args: argparse.Namespace) -> None:
        """Raise ConfigError where an option lacks; ESPnet would print all its help."""
        lacking = [f"--{name}" for name in args.required if getattr(args, name) is None]
        if lacking:
            raise ConfigError(f"{', '.join(lacking)} must be given: a recipe's run.sh does so")

    @classmethod
    def check_options(cls, args: argparse.Namespace) -> None:
        """Raise ConfigError for options that would be ignored, or that decoding would trip over after the training."""
        system = cls.system
        check_rate(args, system.section(args, "features_conf").sample_rate, "features_conf sample_rate")
        if args.task != system.name:
            here = f"this trains {system.name}: give --task {args.task} on the command line"
            raise ConfigError(f"task: {args.task}: {here}")
        parser = cls.get_parser()
        ignored = [name for name in BATCH_OPTIONS if getattr(args, name) != parser.get_default(name)]
        if ignored:
            raise ConfigError(f"{ignored[0]} has no effect here: batches are made by batch_bins: leave it out")
        check_numbers(args)
        if not args.dry_run:
            cls.check_data(args)
        if "method" in args.search_conf:
            raise ConfigError("search_conf method: give --search instead")
        if from_dict(SearchConfig, args.search_conf, "search_conf").ctc_weight:
            loss = args.loss_conf if "loss_conf" in system.sections else {}
            check_joint("chunking_conf" in system.sections, bool(from_dict(LossConfig, loss, "loss_conf").ctc_weight))
        cls._spelling(args)
        check_optimiser(args, abs_task.optim_classes, abs_task.scheduler_classes)
        if args.compile_layers is not None and not args.collect_stats:
            check_backend(args.compile_layers, "cuda" if args.ngpu else "cpu")
        kept = args.keep_nbest_models
        if min([kept] if isinstance(kept, int) else kept, default=0) < 1:
            raise ConfigError(f"keep_nbest_models {kept}: decoding takes the mean of the best epochs: give 1 or more")
        starts = [path for path in args.init_param if has_normaliser(path)]
        for path in starts:
            check_init_features(path, dataclasses.asdict(system.section(args, "features_conf")))
        if not (args.collect_stats or args.stats_file or starts):
            raise ConfigError(
                "no --stats_file: give feats_stats.npz of the statistics stage, for normalize: global_mvn"
            )

    @classmethod
    def check_data(cls, args: argparse.Namespace) -> None:
        """Raise ConfigError where a set lacks data that the task needs, or has data that it does not know."""
        for part in ("train", "valid"):
            option = f"{part}_data_path_and_name_and_type"
            names, needed = [name for _, name, _ in getattr(args, option)], cls.required_data_names()
            lacking = [name for name in needed if name not in names]
            if lacking:
                raise ConfigError(f"--{option} FILE,NAME,TYPE lacks {', '.join(lacking)}: a recipe's run.sh gives all")
            known = (*needed, *cls.optional_data_names())
            strange = [name for name in names if name not in known and not args.allow_variable_data_keys]
            if strange:
                raise ConfigError(f"--{option}: {shown(strange[0])} is none of {', '.join(known)}: leave it out")

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: nn.Module) -> list[optim.Optimizer]:
        """Build ESPnet's optimizers, once ``freeze_param`` is done, with the learning rates of ``part_rates``.

        ESPnet has cast the model to ``train_dtype`` before, and frozen weights of an LLM with it.

        Raises:
            ConfigError: a name in either fits nothing.
        """
        for part in model.modules():
            if isinstance(part, Decoder):
                part.store_frozen()
        names = [name for name, _ in model.named_parameters()]
        for prefix in args.freeze_param:
            if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
                raise ConfigError(f"freeze_param {prefix}: the model has no such part; its first is {names[0]}")
        optimizers = super().build_optimizers(args, model)
        factors = read_factors(args.part_rates, names)
        for optimizer in optimizers if factors else ():
            split_groups(optimizer, model, factors)
        return optimizers

    @classmethod
    def training_settings(cls, args: argparse.Namespace) -> dict[str, Any]:
        """Return the settings that determine the weights, with defaults: ``{"encoder_conf dim": 144, ...}``."""
        settings = {name: getattr(args, name) for name in (*TRAINING_SETTINGS, "matmul_precision", "part_rates")}
        # However the directory of the experiments is spelt, and wherever it was moved.
        settings["init_param"] = [os.path.relpath(path, args.output_dir) for path in args.init_param]
        settings["token_list"] = args.token_list
        if isinstance(args.token_list, str):
            settings["token_list"] = read_token_list(args.token_list)
        conf = {name: dataclasses.asdict(cls.system.section(args, name)) for name in cls.system.sections}
        for choices in cls.system.part_choices:
            settings[choices.name] = getattr(args, choices.name)
            defaults = get_default_kwargs(choices.classes[settings[choices.name]])
            conf[f"{choices.name}_conf"] = {**defaults, **getattr(args, f"{choices.name}_conf")}
        for name, section in conf.items():
            settings.update({f"{name} {field}": value for field, value in section.items()})
        return {**settings, **{name: getattr(args, name) for name in cls.system.part_sections}}

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Preprocessor:
        """Return the reader of texts and alignments, the same for training and evaluation."""
        system = cls.system
        whole_words = "chunking_conf" in system.sections and system.section(args, "chunking_conf").unit == "word"
        rate = system.section(args, "features_conf").sample_rate
        return Preprocessor(load_tokenizer(args.tokenizer), rate, whole_words, cls._spelling(args))

    @classmethod
    def _ctc_tokenizer(cls, args: argparse.Namespace) -> str | None:
        """Return the file with the CTC head's own tokens; None where there is no such head."""
        if "loss_conf" not in cls.system.sections:
            return None
        loss = cls.system.section(args, "loss_conf")
        return loss.ctc_tokenizer if loss.ctc_weight else None

    @classmethod
    def _spelling(cls, args: argparse.Namespace) -> Spelling | None:
        """Return how texts are written for a CTC head that has tokens of its own; None where there is none.

        Raises:
            ConfigError: these tokens cannot be used.
        """
        ctc_tokenizer = cls._ctc_tokenizer(args)
        if ctc_tokenizer is None:
            return None
        if not Path(ctc_tokenizer).is_file():
            raise ConfigError(f"loss_conf ctc_tokenizer: {ctc_tokenizer} is no file: give the aligner's tokenizer")
        return make_spelling(load_tokenizer(args.tokenizer), load_tokenizer(ctc_tokenizer))

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """Return the function that pads a batch."""
        return collate

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Return the data that every example has."""
        if inference:
            return ("speech",)
        return ("speech", "text", "alignment") if cls.system.needs_alignment else ("speech", "text")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Return the data that an example may have."""
        return ("spk", "alignment")

    @classmethod
    def build_task_iter_factory(
        cls, args: argparse.Namespace, iter_options: abs_task.IteratorOptions, mode: str
    ) -> BatchFactory:
        """Return the factory of batches by total sequence length.

        Args:
            args: options of the training.
            iter_options: ESPnet's, of a set.
            mode: "train", "valid" or "plot_att".
        """
        paths = {name: path for path, name, _ in iter_options.data_path_and_name_and_type}
        if len(iter_options.shape_files) != 2:
            raise ConfigError(
                f"{mode}: give two shape files, speech_shape and text_shape, as the statistics stage wrote them"
            )
        samples, tokens = (read_first_ints(path) for path in iter_options.shape_files)
        if args.num_iters_per_epoch is not None:
            raise ConfigError("num_iters_per_epoch is not supported: an epoch is every utterance once")
        world = distributed.get_world_size() if iter_options.distributed else 1
        features = cls.system.section(args, "features_conf")
        return BatchFactory(
            dataset=cls.build_dataset(args, iter_options),
            samples=samples,
            tokens=tokens,
            speakers=read_table(paths["spk"]) if "spk" in paths else None,
            concat=cls.system.section(args, "concat_conf"),
            augment=cls.system.section(args, "augment_conf"),
            batch_bins=iter_options.batch_bins,
            sample_rate=features.sample_rate,
            tail=features.tail_frames,
            seed=args.seed,
            train=iter_options.train,
            workers=args.num_workers,
            rank=distributed.get_rank() if iter_options.distributed else 0,
            world_size=world,
            count_inputs=cls.input_counter(args),
            prompts=cls.prompt_maker(args, paths["text"]),
        )

    @classmethod
    def prompt_maker(cls, args: argparse.Namespace, text_file: str) -> PromptMaker | None:
        """Return what draws the prompts of training; None: there are none.

        Args:
            args: options of the training.
            text_file: the training texts.
        """
        if "text_prompt_conf" not in cls.system.sections:
            return None
        config = cls.system.section(args, "text_prompt_conf")
        if not config.probability:
            return None
        return PromptMaker(config, load_tokenizer(args.tokenizer), read_table(text_file).values())

    @classmethod
    def input_counter(cls, args: argparse.Namespace) -> Callable[[int, int], int]:
        """Return the function that counts the decoder inputs of so many frames and tokens.

        Where training draws chunk sizes, it returns the most that any of them gives.
        """
        if "projection_conf" not in cls.system.sections:
            return sequence_length
        reduction = cls.system.section(args, "projection_conf").reduction
        sizes = cls.system.section(args, "chunking_conf").sizes

        def count(num_frames: int, num_tokens: int) -> int:
            return max(sequence_length(num_frames, num_tokens, size, reduction) for size in sizes)

        return count

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> nn.Module:
        """Make the model of ``args`` and complete them to config.yaml, with the tokens themselves."""
        if isinstance(args.token_list, str):
            args.token_list = read_token_list(args.token_list)
        if args.stats_file:
            features = cls.system.section(args, "features_conf")
            check_statistics(Path(args.stats_file), dataclasses.asdict(features))
        return cls.system.build_model(args)


def _refuse(message: str) -> NoReturn:
    message = message.split("\n")[0]  # behind it are ESPnet's examples
    raise ConfigError(f"{message}: speechllm-xl train --espnet-help lists the options")
