"""The DeepSpeed JSON that a config gives, and what is refused."""

import pytest

from shards.errors import UserError
from student_train.config import OptimizerConfig, TrainConfig
from student_train.engine import accumulation_steps, deepspeed_config
from student_train.module import loss_scale


def json_of(**settings):
    return deepspeed_config(TrainConfig(**settings), accumulation=4, bfloat16=False)


def test_the_config_decides_stage_precision_clipping_and_batch():
    made = json_of(zero_stage=2, batch_size=3, optimizer=OptimizerConfig(clip=0.5, learning_rate=0.01))
    assert made["zero_optimization"]["stage"] == 2
    assert "stage3_param_persistence_threshold" not in made["zero_optimization"]
    assert made["bf16"] == {"enabled": False}
    assert made["gradient_clipping"] == 0.5
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (3, 4)
    assert made["optimizer"]["params"]["torch_adam"] is True
    assert deepspeed_config(TrainConfig(), accumulation=1, bfloat16=True)["bf16"] == {"enabled": True}


@pytest.mark.parametrize(
    ("stage", "keys"), [(0, set()), (2, {"offload_optimizer"}), (3, {"offload_optimizer", "offload_param"})]
)
def test_offload_puts_what_the_stage_can_move_on_the_cpu(stage, keys):
    zero = json_of(zero_stage=stage, offload=True)["zero_optimization"]
    assert {k for k in zero if k.startswith("offload")} == keys


def test_own_deepspeed_keys_are_merged_in():
    made = json_of(deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}, "dump_state": True})
    assert made["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert made["zero_optimization"]["stage"] == 3
    assert made["dump_state"] is True


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"gradient_clipping": 2.0}, r"train.deepspeed.gradient_clipping: 2.0 .* train.optimizer.clip"),
        ({"zero_optimization": {"stage": 1}}, r"train.deepspeed.zero_optimization.stage: 1 .* train.zero_stage"),
        ({"checkpoint": {"load_universal": True}}, r"checkpoint.load_universal: True .* train.ranks"),
        ({"bf16": {"enabled": True}}, r"train.deepspeed.bf16: .* train.dtype"),
    ],
)
def test_a_key_that_another_setting_owns_is_refused_naming_that_setting(theirs, message):
    with pytest.raises(UserError, match=message):
        json_of(deepspeed=theirs)


def test_accumulation_follows_from_the_global_batch():
    assert accumulation_steps(TrainConfig(batch_size=2, accumulation=4), 3) == 4
    assert accumulation_steps(TrainConfig(batch_size=2, global_batch=24), 3) == 4


@pytest.mark.parametrize(("global_batch", "nearest"), [(3, 6), (13, 12), (16, 18), (1, 6)])
def test_a_global_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(global_batch, nearest):
    with pytest.raises(UserError, match=f"train.global_batch: {global_batch} .* nearest that does is {nearest}"):
        accumulation_steps(TrainConfig(batch_size=2, global_batch=global_batch), 3)


def test_the_global_batch_of_a_checkpoint_stays_on_other_ranks_or_is_refused_with_the_nearest_number_of_ranks():
    train = TrainConfig(batch_size=2, accumulation=3)  # two ranks made it a global batch of 12
    assert [accumulation_steps(train, world, kept=12) for world in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(UserError, match=r"global batch of 12 does not divide .* x 4 ranks; go on with 3 or 6 ranks"):
        accumulation_steps(train, 4, kept=12)
    with pytest.raises(UserError, match=r"go on with 1 rank$"):
        accumulation_steps(train, 2, kept=2)


def test_the_scale_undoes_what_deepspeed_averages():
    # two ranks, two micro-batches: DeepSpeed divides each by 2 and averages the ranks
    losses, weights = [[3.0, 5.0], [7.0, 0.0]], 4 + 6 + 5 + 0
    scale = loss_scale(weights, ranks=2, accumulation=2)
    deepspeed = sum(sum(loss * scale / 2 for loss in rank) for rank in losses) / 2
    assert deepspeed == pytest.approx((3 + 5 + 7) / 15)
    assert loss_scale(0.0, 2, 2) == 0.0
