"""The configuration fields of networks that several families have."""

from dataclasses import replace

from sid_lsg.teachers.checks import Fields, names

_OFF = (None, False)

UNET = Fields(
    names(
        "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift "
        "down_block_types mid_block_type up_block_types only_cross_attention block_out_channels "
        "layers_per_block downsample_padding mid_block_scale_factor dropout act_fn "
        "norm_num_groups norm_eps cross_attention_dim transformer_layers_per_block "
        "reverse_transformer_layers_per_block attention_head_dim num_attention_heads "
        "use_linear_projection upcast_attention resnet_skip_time_act resnet_out_scale_factor "
        "time_embedding_dim time_embedding_act_fn timestep_post_act conv_in_kernel "
        "conv_out_kernel mid_block_only_cross_attention cross_attention_norm "
        # Without the types below, these have no effect.
        "addition_time_embed_dim addition_embed_type_num_heads class_embeddings_concat "
        "projection_class_embeddings_input_dim"
    ),
    {
        "time_cond_proj_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "encoder_hid_dim": (None,),
        "addition_embed_type": (None,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "dual_cross_attention": _OFF,
        "attention_type": ("default",),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "time_embedding_type": ("positional",),
    },
)
"""Stable Diffusion's UNet: noisy latents, a timestep and one text."""

KL_VAE = Fields(
    names(
        "down_block_types up_block_types block_out_channels layers_per_block act_fn "
        "latent_channels norm_num_groups sample_size force_upcast use_quant_conv "
        "use_post_quant_conv mid_block_add_attention"
    ),
    {
        "in_channels": (3,),
        "out_channels": (3,),
        "shift_factor": (None, 0),
        "latents_mean": (None,),
        "latents_std": (None,),
    },
    names("scaling_factor"),
)
"""The KL autoencoder of Stable Diffusion, whose latents are scaled but not shifted."""

# What transformers stores with every configuration. Fields of text generation have no effect.
_TRANSFORMERS = names(
    "transformers_version architectures model_type dtype torch_dtype id2label label2id "
    "problem_type tokenizer_class return_dict output_hidden_states output_attentions "
    "is_encoder_decoder torchscript use_bfloat16 tf_legacy_loss tie_encoder_decoder "
    "tie_word_embeddings finetuning_task task_specific_params prefix min_length max_length "
    "do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p "
    "typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sep_token_id "
    "decoder_start_token_id use_cache"
)
TRANSFORMERS = Fields(
    _TRANSFORMERS,
    {
        "chunk_size_feed_forward": (0,),
        "pruned_heads": (None, {}),
        "is_decoder": _OFF,
        "add_cross_attention": _OFF,
        "cross_attention_hidden_size": (None,),
    },
)
"""The fields of every network of transformers; a family adds its text encoder's."""

CLIP_TEXT = Fields(
    TRANSFORMERS.free
    | names(
        "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers "
        "num_attention_heads max_position_embeddings hidden_act layer_norm_eps attention_dropout "
        "dropout initializer_range initializer_factor pad_token_id bos_token_id eos_token_id"
    ),
    TRANSFORMERS.only,
)
"""CLIP's text encoder."""

T5_TEXT = Fields(
    TRANSFORMERS.free
    | names(
        "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads n_positions "
        "relative_attention_num_buckets relative_attention_max_distance dropout_rate "
        "layer_norm_epsilon initializer_factor feed_forward_proj pad_token_id eos_token_id "
        "bos_token_id classifier_dropout dense_act_fn is_gated_act scale_decoder_outputs "
        "output_past gradient_checkpointing"
    ),
    TRANSFORMERS.only,
)
"""T5's encoder."""

DC_VAE = Fields(
    names(
        "latent_channels attention_head_dim encoder_block_types decoder_block_types "
        "encoder_block_out_channels decoder_block_out_channels encoder_layers_per_block "
        "decoder_layers_per_block encoder_qkv_multiscales decoder_qkv_multiscales "
        "upsample_block_type downsample_block_type decoder_norm_types decoder_act_fns "
        "encoder_out_shortcut decoder_in_shortcut decoder_conv_act_fn"
    ),
    {"in_channels": (3,)},
    names("scaling_factor"),
)
"""The deep compression autoencoder."""

GEMMA_TEXT = Fields(
    TRANSFORMERS.free
    | names(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act hidden_activation max_position_embeddings "
        "initializer_range rms_norm_eps pad_token_id bos_token_id eos_token_id rope_theta "
        "rope_parameters rope_scaling attention_bias attention_dropout query_pre_attn_scalar "
        "sliding_window sliding_window_size layer_types attn_logit_softcapping "
        "final_logit_softcapping cache_implementation use_bidirectional_attention"
    ),
    TRANSFORMERS.only,
)
"""Gemma 2, read up to its last hidden states."""

QWEN_TEXT = Fields(
    TRANSFORMERS.free
    | names(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range "
        "rms_norm_eps pad_token_id bos_token_id eos_token_id rope_theta rope_parameters "
        "rope_scaling attention_bias attention_dropout use_sliding_window sliding_window "
        "max_window_layers layer_types"
    ),
    TRANSFORMERS.only,
)
"""Qwen 2.5 and 3, read as encoders of text."""

QWEN_VL = replace(
    QWEN_TEXT,
    free=QWEN_TEXT.free
    | names(
        "text_config vision_config image_token_id video_token_id vision_token_id "
        "vision_start_token_id vision_end_token_id"
    ),
)
"""Qwen 2.5 VL, read as an encoder of text; also the fields of its `text_config`."""
