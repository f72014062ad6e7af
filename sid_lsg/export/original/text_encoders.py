"""Text encoders as the original codes name them."""

from sid_lsg.export.original.layout import Layout, transpose

CLIP = Layout(
    (
        (r"^(?:text_model\.)?(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),
        (r"^text_projection\.", "text_projection."),
    )
)
"""CLIP as transformers names it, with `text_model.` whatever the release."""

OPEN_CLIP = Layout(
    (
        (r"^(?:text_model\.)?embeddings\.token_embedding\.", "token_embedding."),
        (r"^(?:text_model\.)?embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^(?:text_model\.)?final_layer_norm\.", "ln_final."),
        (r"^text_projection\.weight$", "text_projection"),
        (r"^(?:text_model\.)?encoder\.layers\.", "transformer.resblocks."),
        (r"\.self_attn\.q_proj\.(weight|bias)$", r".attn.in_proj_\1#0"),
        (r"\.self_attn\.k_proj\.(weight|bias)$", r".attn.in_proj_\1#1"),
        (r"\.self_attn\.v_proj\.(weight|bias)$", r".attn.in_proj_\1#2"),
        (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
        (r"\.layer_norm([12])\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ),
    {r"^text_projection$": transpose},
)
"""CLIP as OpenCLIP names it."""

T5 = Layout(((r"^(shared|encoder)\.", r"\1."),))
"""T5's encoder as transformers names it."""
