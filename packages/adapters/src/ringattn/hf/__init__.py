"""Context parallelism for the decoders of Hugging Face transformers.

Importing this package registers the attention implementation "ringattn". Two lines then spread a model's sequences
over a group of ranks:

    import ringattn.hf
    ringattn.hf.parallelize(model, mesh["cp"])
"""

from ringattn.extras import missing

try:
    from ringattn.hf.cache import ShardedCache
    from ringattn.hf.logprobs import token_logprobs
    from ringattn.hf.parallel import parallelize, restore, unshard
    from ringattn.hf.register import NAME
    from ringattn.hf.shared_prompts import SharedPrompts, pack_shared_prompts
except ImportError as error:
    reason = missing("ringattn.hf", "hf", "transformers", "accelerate")
    if reason is None:
        raise
    raise ModuleNotFoundError(reason) from error

__all__ = [
    "NAME",
    "ShardedCache",
    "SharedPrompts",
    "pack_shared_prompts",
    "parallelize",
    "restore",
    "token_logprobs",
    "unshard",
]
