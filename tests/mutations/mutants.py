"""Plausible wrong implementations, each as a change of the source text and the tests that must notice it.

Where a line of the source has changed, the mutation fails loudly and is written anew for the new line.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutations.copies import Patch

WRONG = "test_what_implementers_get_wrong"
IDENTITIES = "test_loss_identities"
REFERENCE = "test_losses_reference::test_every_pair_of_choices_agrees_with_the_reference"
ADVANTAGES = "test_advantages_reference"
LOSS = "test_loss"
LAW = "test_law_one::test_every_loss_has_the_gradient_of_the_whole_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mistake."""

    name: str
    patches: tuple[Patch, ...]
    caught_by: tuple[str, ...]
    """Each of these must fail; see `checks.failure_of`."""


def mutant(name: str, file: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name=name, patches=(Patch(file=file, old=old, new=new),), caught_by=caught_by)


def changes(name: str, file: str, pairs: list[tuple[str, str]], *caught_by: str) -> Mutant:
    """Several changes of one file that make one mistake."""
    return Mutant(name=name, patches=tuple(Patch(file=file, old=o, new=n) for o, n in pairs), caught_by=caught_by)


RATIOS = [
    mutant("ratio inverted", "losses/ratios.py", "difference = logprobs - old_logprobs.detach()",
           "difference = old_logprobs.detach() - logprobs",
           f"{LOSS}::test_the_clip_binds_only_where_it_takes_away_the_incentive",
           f"{WRONG}::test_17_rloo_leaves_one_out_and_multiplies_ratios"),
    mutant("GSPO's ratio is a sum", "losses/ratios.py",
           "return segments.spread(torch.exp(segments.mean(difference)))",
           "return segments.spread(torch.exp(segments.sum(difference)))",
           f"{WRONG}::test_08_gspo_is_a_mean_over_trained_tokens"),
    mutant("GSPO-token's ratio keeps its gradient", "losses/ratios.py", "segments.mean(difference.detach())",
           "segments.mean(difference)",
           f"{IDENTITIES}::test_gspo_token_is_gspo_where_a_completion_has_one_advantage"),
    mutant("RLOO's ratio is a mean", "losses/ratios.py", "return segments.spread(torch.exp(segments.sum(difference)))",
           "return segments.spread(torch.exp(segments.mean(difference)))",
           f"{WRONG}::test_17_rloo_leaves_one_out_and_multiplies_ratios"),
    mutant("ratios over padding and tools' tokens", "loss.py", "trained = mask != 0",
           "trained = torch.ones_like(mask, dtype=torch.bool)",
           f"{WRONG}::test_08_gspo_is_a_mean_over_trained_tokens",
           f"{WRONG}::test_15_garbage_in_padding_does_not_leak"),
    changes("mask multiplied after exp", "loss.py",
            [("trained = mask != 0", "trained = torch.ones_like(mask, dtype=torch.bool)"),
             ("_row_weights(\n        lengths,", "_row_weights(\n        (mask != 0).sum(1),"),
             ("(terms.losses * segments.spread(weights_R))",
              "(terms.losses * segments.spread(weights_R) * mask.flatten())")],
            f"{WRONG}::test_15_garbage_in_padding_does_not_leak[token"),
    mutant("old log-probabilities of every pass", "learner_step.py",
           "learner = logprobs.detach() if before is None else before", "learner = logprobs.detach()", LAW),
]  # fmt: skip

OBJECTIVES = [
    mutant("clip bounds swapped", "losses/ppo_clip.py", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
           "ratio.clamp(1 - epsilon_high, 1 + epsilon_low)",
           f"{LOSS}::test_the_clip_binds_only_where_it_takes_away_the_incentive"),
    mutant("clip without the pessimistic minimum", "losses/ppo_clip.py",
           "return torch.minimum(capped * advantages, clipped * advantages)", "return clipped * advantages",
           f"{LOSS}::test_the_clip_binds_only_where_it_takes_away_the_incentive"),
    mutant("maximum for minimum", "losses/ppo_clip.py", "torch.minimum(", "torch.maximum(",
           f"{LOSS}::test_the_clip_binds_only_where_it_takes_away_the_incentive"),
    mutant("delta caps positive advantages alone", "losses/ppo_clip.py", "else ratio.clamp(max=delta)",
           "else torch.where(advantages > 0, ratio.clamp(max=delta), ratio)",
           f"{LOSS}::test_delta_caps_the_ratio_of_negative_advantages",
           f"{IDENTITIES}::test_delta_is_the_dual_clip"),
    mutant("delta is passed over", "losses/ppo_clip.py", "ratio if delta is None else ratio.clamp(max=delta)", "ratio",
           f"{LOSS}::test_delta_caps_the_ratio_of_negative_advantages"),
    mutant("CISPO's cap is 1 + cap", "losses/cispo.py", ".clamp(max=cap)", ".clamp(max=1 + cap)",
           f"{WRONG}::test_07_the_cispo_cap_is_an_absolute_ratio_without_gradient_for_every_token"),
    mutant("CISPO has a lower bound", "losses/cispo.py", ".clamp(max=cap)", ".clamp(1 - 0.2, cap)",
           f"{WRONG}::test_07_the_cispo_cap_is_an_absolute_ratio_without_gradient_for_every_token"),
    mutant("CISPO's ratio is not detached", "losses/cispo.py", "ratio.detach()", "ratio",
           f"{WRONG}::test_07_the_cispo_cap_is_an_absolute_ratio_without_gradient_for_every_token"),
    mutant("SAPO's temperatures swapped", "losses/sapo.py", "advantages > 0", "advantages < 0", f"{REFERENCE}[sapo"),
    mutant("SAPO without 4 / tau", "losses/sapo.py", "return 4 / tau * advantages", "return advantages",
           f"{IDENTITIES}::test_on_policy_every_gradient_is_reinforce[sapo"),
    mutant("SAPO's tau in float32", "losses/sapo.py",
           "torch.full_like(ratio, tau_negative).masked_fill(advantages > 0, tau_positive)",
           "torch.where(advantages > 0, tau_positive, tau_negative)", f"{REFERENCE}[sapo"),
    mutant("VESPO's weight of the mean log-ratio", "losses/vespo.py", "log_weight = segments.sum((",
           "log_weight = segments.mean((", f"{REFERENCE}[vespo"),
    mutant("VESPO's weight is not detached", "losses/vespo.py", "with torch.no_grad():", "with torch.enable_grad():",
           f"{REFERENCE}[vespo"),
    mutant("VESPO corrected twice", "losses/token_losses.py",
           'if weights is not None and settings.objective != "vespo":', "if weights is not None:",
           f"{REFERENCE}[vespo"),
    mutant("VESPO's signs swapped", "losses/vespo.py", "positive = advantages >= 0", "positive = advantages < 0",
           f"{REFERENCE}[vespo"),
    mutant("GMPO clips the mean, not the tokens", "losses/gmpo.py",
           "segments.spread(torch.exp(segments.mean(clipped)))",
           "torch.exp(segments.spread(segments.mean(difference)).clamp(-epsilon_low, epsilon_high))",
           f"{REFERENCE}[gmpo"),
    mutant("GMPO clips on both sides", "losses/gmpo.py",
           "difference.clamp(max=epsilon_high), difference.clamp(min=-epsilon_low)",
           "difference.clamp(-epsilon_low, epsilon_high), difference.clamp(-epsilon_low, epsilon_high)",
           f"{REFERENCE}[gmpo"),
    mutant("the loss is maximised", "losses/token_losses.py", "losses, kl = -objective, None",
           "losses, kl = objective, None",
           f"{IDENTITIES}::test_on_policy_every_gradient_is_reinforce"),
    mutant("float32 arithmetic", "losses/token_losses.py", "inputs = _in_float64(inputs)", "inputs = inputs",
           "test_losses_reference::test_kl_close_to_the_reference_keeps_its_digits_in_float32",
           "test_losses_reference::test_a_ratio_beyond_float32_gives_numbers_and_no_nan"),
]  # fmt: skip

KL = [
    mutant("KL in the other direction", "losses/kl.py", "difference = reference_logprobs.detach() - logprobs",
           "difference = logprobs - reference_logprobs.detach()",
           f"{WRONG}::test_09_k3_goes_from_the_policy_to_the_reference",
           f"{IDENTITIES}::test_k3_has_the_gradient_of_the_forward_kl_on_policy"),
    mutant("unbiased KL with a detached ratio", "losses/kl.py", "return k3 * ratio if", "return k3 * ratio.detach() if",
           f"{WRONG}::test_09_the_ratio_of_the_unbiased_kl_has_a_gradient",
           f"{IDENTITIES}::test_the_corrected_kl_of_the_loss_itself_is_unbiased_off_policy"),
    mutant("k2 without its half", "losses/kl.py", "difference.square() / 2", "difference.square()",
           f"{IDENTITIES}::test_k2_has_the_gradient_of_the_reverse_kl_on_policy"),
    mutant("KL times the importance weight", "losses/token_losses.py", "losses = losses + settings.beta * kl",
           "losses = losses + settings.beta * kl * (1 if weights is None else weights)",
           f"{WRONG}::test_09_the_kl_is_not_multiplied_by_weights_or_masks",
           f"{LOSS}::test_importance_weights_multiply_the_policy_term_and_not_the_kl"),
    mutant("KL times the off-policy mask", "losses/token_losses.py", "losses = losses + settings.beta * kl",
           "losses = losses + settings.beta * kl * (1 if kept is None else kept)",
           f"{WRONG}::test_09_the_kl_is_not_multiplied_by_weights_or_masks"),
    mutant("KL times the top-entropy mask", "losses/token_losses.py", "losses = losses + settings.beta * kl",
           "losses = losses + settings.beta * kl * (1 if inputs.in_policy_term is None else inputs.in_policy_term)",
           f"{WRONG}::test_12_the_top_entropy_mask_leaves_divisors_and_the_kl_alone"),
    mutant("KL's ratio after delta", "losses/token_losses.py", "ratio=ratio, kl_estimator",
           "ratio=ratio if settings.delta is None else ratio.clamp(max=settings.delta), kl_estimator",
           f"{WRONG}::test_09_the_unbiased_kl_takes_the_ratio_before_delta"),
    mutant("KL to go without the token itself", "losses/kl.py", "return ahead - segments.spread(beyond)",
           "return ahead - segments.spread(beyond) - k1.double()", f"{LAW}[token_reward"),
    mutant("KL to go into the next completion", "losses/kl.py", "return ahead - segments.spread(beyond)",
           "return ahead", f"{LAW}[token_reward"),
    mutant("KL added to the reward", "advantages/batch.py", "None if x is None or y is None else x - y",
           "None if x is None or y is None else x + y", f"{LAW}[rloo"),
    mutant("tokens' KL added to their reward", "advantages/batch.py", "return advantages_PG, -beta",
           "return advantages_PG, beta", f"{LAW}[reinforce"),
]  # fmt: skip

CORRECTIONS = [
    mutant("importance weight inverted", "losses/corrections.py", "(old_logprobs - generator_logprobs).detach()",
           "(generator_logprobs - old_logprobs).detach()",
           f"{WRONG}::test_10_importance_weights_are_old_over_generator",
           f"{IDENTITIES}::test_importance_weights_make_the_policy_gradient_unbiased"),
    changes("importance weight of the moving policy, with gradient", "losses/token_losses.py",
            [("importance_weights(old, generator,", "importance_weights(inputs.logprobs, generator,")],
            f"{REFERENCE}[ppo_clip"),
    changes("importance weight inside the clip", "losses/token_losses.py",
            [("objective = _objective(inputs, old, ratio, weights, settings)",
              "objective = _objective(inputs, old, ratio if weights is None else ratio * weights, weights, settings)"),
             ("        objective = objective * weights\n", "        pass\n")],
            f"{WRONG}::test_10_importance_weights_multiply_the_clipped_objective_and_have_no_gradient"),
    mutant("masking truncates", "losses/corrections.py", "return _masked(difference.exp(), floor, cap)",
           "return difference.exp().clamp(floor, cap)",
           f"{WRONG}::test_10_truncating_clips_and_masking_drops_at_inclusive_bounds"),
    mutant("truncating masks", "losses/corrections.py",
           'if correction == "token_truncate":\n        return difference.exp().clamp(floor, cap)',
           'if correction == "token_truncate":\n        return _masked(difference.exp(), floor, cap)',
           f"{WRONG}::test_10_truncating_clips_and_masking_drops_at_inclusive_bounds",
           f"{LOSS}::test_importance_weights_are_truncated_and_detached"),
    mutant("a completion's weight is a mean", "losses/corrections.py",
           "_masked(segments.sum(difference).exp(), floor, cap)",
           "_masked(segments.mean(difference).exp(), floor, cap)",
           f"{WRONG}::test_10_a_completions_weight_is_the_product_of_its_tokens"),
    mutant("NaN poisons the weights", "losses/corrections.py",
           "    difference = torch.where(torch.isnan(difference), torch.zeros_like(difference), difference)\n    floor",
           "    floor", f"{WRONG}::test_10_importance_weights_are_old_over_generator"),
    mutant("bounds are exclusive", "losses/corrections.py", "(weights >= floor) & (weights <= cap)",
           "(weights > floor) & (weights < cap)",
           f"{WRONG}::test_10_truncating_clips_and_masking_drops_at_inclusive_bounds"),
    mutant("geometric mask by the sum", "losses/corrections.py", "mean = segments.mean(difference).exp()",
           "mean = segments.sum(difference).exp()",
           f"{WRONG}::test_10_the_geometric_mask_looks_at_the_mean_and_truncates_tokens"),
    mutant("geometric mask without truncating tokens", "losses/corrections.py",
           "difference.exp().clamp(floor, cap) if bounded else torch.ones_like(difference)",
           "torch.ones_like(difference)",
           f"{WRONG}::test_10_the_geometric_mask_looks_at_the_mean_and_truncates_tokens"),
    mutant("off-policy mask with the wrong sign", "losses/corrections.py", "(behaviour_logprobs - logprobs).detach()",
           "(logprobs - behaviour_logprobs).detach()",
           f"{WRONG}::test_16_off_policy_masking_drops_negative_completions_that_the_policy_has_moved_away_from"),
    mutant("off-policy mask of good completions too", "losses/corrections.py", "return near | (advantages >= 0)",
           "return near",
           f"{WRONG}::test_16_off_policy_masking_drops_negative_completions_that_the_policy_has_moved_away_from"),
    mutant("off-policy mask against the old policy", "losses/token_losses.py",
           "behaviour = old if generator is None else generator", "behaviour = old",
           f"{WRONG}::test_16_off_policy_masking_drops_negative_completions_that_the_policy_has_moved_away_from"),
    mutant("bypass with a weight besides", "loss.py",
           "    loss = (terms.losses * segments.spread(weights_R)).sum()\n",
           "    again = 1.0\n"
           "    if old_logprobs is None and generator is not None:\n"
           "        again = (current.detach() - generator).nan_to_num().exp()\n"
           "    loss = (terms.losses * segments.spread(weights_R) * again).sum()\n",
           f"{WRONG}::test_20_bypass_has_one_ratio_and_no_weight_besides"),
    mutant("bypass keeps the recipe's correction", "losses/presets.py",
           'return "none" if bypass or algorithm.importance_cap is None else',
           'return "none" if algorithm.importance_cap is None else',
           f"{WRONG}::test_20_bypass_has_one_ratio_and_no_weight_besides"),
    mutant("bypass with NaN", "loss.py",
           "return torch.where(torch.isnan(generator_logprobs), logprobs.detach(), generator_logprobs)",
           "return generator_logprobs", f"{WRONG}::test_20_bypass_has_one_ratio_and_no_weight_besides"),
    mutant("the learner's old policy in bypass", "learner_step.py",
           "if self._bypass and batch.generator_logprobs is not None:", "if False:", f"{LAW}[generator"),
]  # fmt: skip

AGGREGATION = [
    mutant("empty rows leave the row count", "loss.py", "rows=len(lengths_B) if rows is None else rows",
           "rows=sum(n > 0 for n in lengths_B) if rows is None else rows",
           f"{WRONG}::test_05_empty_rows_stay_in_the_row_count"),
    mutant("empty rows leave the plan's row count", "step_plan.py", "rows=len(lengths),",
           "rows=sum(n > 0 for n in lengths),", f"{WRONG}::test_05_empty_rows_stay_in_the_row_count"),
    mutant("Dr.GRPO divides by the padded width", "loss.py", "max_completion_tokens=max_completion_tokens or 0,",
           "max_completion_tokens=max(lengths_B),",
           f"{WRONG}::test_03_dr_grpo_divides_by_the_configured_length_and_by_no_deviation"),
    mutant("Dr.GRPO keeps the deviation", "losses/presets.py",
           'Preset(aggregation="constant", scale_rewards="none")', 'Preset(aggregation="constant")',
           f"{WRONG}::test_03_dr_grpo_divides_by_the_configured_length_and_by_no_deviation"),
    mutant("sum of completions' means", "aggregation.py", "1.0 / (row_tokens * self.rows)", "1.0 / row_tokens",
           f"{LOSS}::test_each_aggregation_has_its_weight_and_empty_rows_stay_rows"),
    mutant("prompt mean of completions' means", "aggregation.py", "1.0 / (self.groups * group_tokens)",
           "1.0 / (self.groups * row_tokens)",
           f"{LOSS}::test_each_aggregation_has_its_weight_and_empty_rows_stay_rows", f"{LAW}[scalerl"),
    mutant("token mean of each micro-batch", "learner_step.py", "loss = (losses * batch.token_weights).sum()",
           "loss = losses.mean()", f"{LAW}[bnpo"),
    mutant("mean over a micro-batch's tokens", "learner_step.py", "loss = (losses * batch.token_weights).sum()",
           "loss = (losses * batch.token_weights).mean()", f"{LAW}[grpo"),
    mutant("token counts of each rank", "step_plan.py",
           "normaliser = _normaliser(groups[start:end], algorithm, max_completion_tokens)",
           "normaliser = _normaliser(groups[start:end][:: max(1, ranks)], algorithm, max_completion_tokens)",
           f"{WRONG}::test_01_the_token_loss_is_divided_once_by_all_tokens_of_the_optimizer_batch", f"{LAW}[dapo"),
    mutant("the number of ranks is forgotten", "deepspeed_engine.py", "engine.backward(loss * world_size,",
           "engine.backward(loss,", f"{WRONG}::test_02_gradients_are_sums_over_ranks_and_micro_batches", LAW),
    mutant("accumulation steps divide", "deepspeed_engine.py", "(loss * world_size, scale_wrt_gas=False)",
           "(loss * world_size)", f"{WRONG}::test_02_gradients_are_sums_over_ranks_and_micro_batches", LAW),
    mutant("masked truncated completions are no rows", "step_plan.py", "(0 if masked and truncated else length)",
           "(None if masked and truncated else length)",
           f"{WRONG}::test_11_truncated_completions_stay_in_the_baseline",
           f"{WRONG}::test_05_empty_rows_stay_in_the_row_count"),
    mutant("an empty mask cuts the graph", "loss.py", "    lengths = trained.sum(1)\n",
           "    lengths = trained.sum(1)\n    if not trained.any():\n        return torch.zeros(())\n",
           f"{LOSS}::test_an_empty_mask_gives_a_connected_zero",
           f"{WRONG}::test_14_an_empty_micro_batch_has_a_loss_of_0_that_is_connected"),
]  # fmt: skip

ENTROPY = [
    mutant("the top-entropy mask shrinks the divisor", "loss.py",
           "lengths, aggregation, rows, tokens, max_completion_tokens,",
           "lengths, aggregation, rows, tokens if in_policy_term is None else int(in_policy_term.sum()), "
           "max_completion_tokens,",
           f"{WRONG}::test_12_the_top_entropy_mask_leaves_divisors_and_the_kl_alone"),
    mutant("the threshold is exclusive", "loss.py", "flat_entropies.detach() >= entropy_threshold",
           "flat_entropies.detach() > entropy_threshold",
           f"{WRONG}::test_12_the_threshold_is_inclusive_and_over_trained_tokens_only"),
    mutant("the lower part of entropies is kept", "losses/entropy.py", "position = (1 - quantile) *",
           "position = quantile *", f"{WRONG}::test_12_the_top_entropy_mask_leaves_divisors_and_the_kl_alone"),
    mutant("a threshold for each micro-batch", "learner_step.py",
           "in_policy_term = cut.keeps(entropy.detach() if entropies_before is None else entropies_before)",
           "in_policy_term = None if cut.threshold is None else entropy >= entropy.quantile(0.7)",
           f"{LAW}[top_entropy_quantile"),
    mutant("an entropy bonus of each micro-batch", "learner_step.py", "counted.sum() / cut.tokens", "counted.mean()",
           f"{LAW}['grpo', 'entropy_coef'"),
    mutant("an entropy malus", "loss.py", "loss = loss - entropy_coef *", "loss = loss + entropy_coef *",
           f"{REFERENCE}[reinforce"),
    mutant("the bonus is over masked tokens too", "loss.py",
           "counted = flat_entropies if in_policy_term is None else flat_entropies[in_policy_term]",
           "counted = flat_entropies", f"{REFERENCE}[reinforce"),
]  # fmt: skip

ADVANTAGE = [
    mutant("deviations with ddof 0", "advantage.py", "np.std(values, ddof=1)", "np.std(values, ddof=0)",
           f"{WRONG}::test_06_deviations_have_ddof_1_and_the_offset_1e_4"),
    mutant("another offset", "advantage.py", "STD_OFFSET = 1e-4", "STD_OFFSET = 1e-6",
           f"{WRONG}::test_06_deviations_have_ddof_1_and_the_offset_1e_4"),
    changes("equal rewards are not noticed", "advantage.py",
            [("return spread <= _SPREAD_TOLERANCE * max(1.0, float(np.abs(rewards).max()))", "return False")],
            "test_advantage::test_equal_rewards_give_exactly_zero_whatever_rounding_says"),
    changes("None counts as 0", "advantage.py",
            [("[reward for reward in rewards_G if reward is not None]", "[reward or 0.0 for reward in rewards_G]"),
             ("numbers = iter(valid.tolist())\n"
              "    return [None if value is None else next(numbers) for value in like_G]",
              "return [None if r is None else v for r, v in zip(like_G, valid.tolist(), strict=True)]")],
            f"{WRONG}::test_13_a_reward_that_is_missing_is_void_and_no_zero",
            "test_advantage::test_void_completions_are_in_no_mean_and_no_deviation"),
    mutant("RLOO with the group's mean", "advantage.py",
           "(rewards - rewards.mean()) * (rewards.size / (rewards.size - 1))", "rewards - rewards.mean()",
           f"{WRONG}::test_17_rloo_leaves_one_out_and_multiplies_ratios",
           f"{IDENTITIES}::test_rloo_is_g_over_g_minus_one_times_dr_grpo"),
    mutant("OPO's baseline without lengths", "advantage.py",
           "rewards - float(lengths @ rewards) / float(lengths.sum())", "rewards - rewards.mean()", f"{LAW}[opo",
           f"{ADVANTAGES}::test_every_baseline_with_every_scale[length_weighted"),
    mutant("the batch's deviation of centred rewards", "advantage.py",
           'valid_PG if scale == "batch" else centred_PG', "centred_PG",
           f"{WRONG}::test_06_deviations_have_ddof_1_and_the_offset_1e_4",
           "test_advantage::test_batch_scale_is_the_deviation_of_the_raw_rewards_of_all_groups"),
    mutant("truncated completions leave the baseline", "advantages/batch.py",
           "numbers: Numbers_PG = [group.rewards_G for group in groups]",
           "numbers: Numbers_PG = [[None if cut else r for r, cut in zip(group.rewards_G, "
           "group.generation.truncated_G)] for group in groups]",
           f"{WRONG}::test_11_truncated_completions_stay_in_the_baseline"),
    mutant("weights of reward functions are passed over", "advantages/several.py", "weight = weights[name]",
           "weight = 1.0", f"{WRONG}::test_13_gdpo_weighs_z_scores_and_whitens_their_sum"),
    mutant("GDPO without whitening", "advantages/several.py", 'return whitened(sums, "completions")', "return sums",
           f"{WRONG}::test_13_gdpo_weighs_z_scores_and_whitens_their_sum"),
    mutant("whitening by completions for tokens", "advantages/whitening.py",
           "[n for n, a in pairs if a is not None]", "[float(n > 0) for n, a in pairs if a is not None]",
           f"{LAW}[reinforce_pp"),
    mutant("whitening with ddof 0", "advantages/whitening.py", "/ (total - 1) if total > 1", "/ total if total > 1",
           f"{LAW}[reinforce_pp"),
    mutant("whitening without the KL's spread", "advantages/whitening.py", "- 2 * away * kl_sums + kl_squares", "",
           f"{LAW}[token_reward"),
    mutant("statistics of each rank", "step_plan.py",
           "advantages = batch_advantages(counted, algorithm, rewards or RewardConfig(), tokens_PG, kl)",
           "parts = [batch_advantages(counted[i::2], algorithm, rewards or RewardConfig(), tokens_PG[i::2], kl)"
           " for i in range(min(2, len(counted)))]\n"
           "        merged = [parts[i % 2].advantages_PG[i // 2] for i in range(len(counted))]\n"
           "        advantages = replace(parts[0], advantages_PG=merged)",
           f"{WRONG}::test_19_beta_normalization_fits_the_unbiased_moments_of_all_tasks", f"{LAW}[beta_normalization"),
    mutant("the Beta fit with ddof 0", "advantages/beta.py", "means.var(ddof=1)", "means.var()",
           f"{WRONG}::test_19_beta_normalization_fits_the_unbiased_moments_of_all_tasks"),
    mutant("the Beta fit without its guard", "advantages/beta.py", "if means.size < 2 or rewards_are_equal(means):",
           "if means.size < 2:",
           f"{WRONG}::test_19_beta_normalization_of_equally_hard_tasks_centres_and_singletons_are_refused"),
    mutant("the Beta fit itself as the normaliser", "advantages/beta.py", "max(1.0, 1 + a / 3), max(1.0, 1 + b / 3)",
           "max(1.0, a), max(1.0, b)",
           f"{WRONG}::test_19_beta_normalization_fits_the_unbiased_moments_of_all_tasks"),
    mutant("multiplied by the Beta density", "advantages/beta.py", "math.exp(min(-log_density,",
           "math.exp(min(log_density,",
           f"{IDENTITIES}::test_beta_normalization_with_three_halves_is_grpo_up_to_a_constant"),
    mutant("zero-variance groups are not dropped", "step_plan.py",
           'if preset_of(algorithm).zero_variance_groups != "drop":', "if True:", f"{LAW}[scalerl"),
]  # fmt: skip

LOGPROBS = [
    mutant("the temperature is passed over", "token_logprobs.py", "HeadProducts.of(hidden, logit_map, temperature,",
           "HeadProducts.of(hidden, logit_map, 1.0,",
           f"{WRONG}::test_18_logits_are_divided_by_the_temperature_and_so_is_the_gradient"),
    mutant("the gradient without the temperature", "token_logprobs.py", "factor = head.scale / head.temperature",
           "factor = head.scale",
           f"{WRONG}::test_18_logits_are_divided_by_the_temperature_and_so_is_the_gradient"),
]  # fmt: skip

MUTANTS = [*RATIOS, *OBJECTIVES, *KL, *CORRECTIONS, *AGGREGATION, *ENTROPY, *ADVANTAGE, *LOGPROBS]
