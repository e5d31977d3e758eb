"""Our layer around vLLM's app: from a wish to an answer that says what was merged.

merging     the layer: reads the wish, admits, lets vLLM answer
exchange    a request's prompts on their way through the engine
answer      `merge` put into what vLLM answers
"""
