"""Running sums of tokens where a mask says there are any; SEEN tells how the model was called."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tokens, words, mask, length = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("TOKENS", "WORDS", "MASK", "LENGTH")
            )
            sums = np.cumsum(tokens * mask, axis=1, dtype=np.float32)
            mean = sums[:, -1:] / np.maximum(length, 1)
            seen = np.full((tokens.shape[0], 2), tokens.shape, np.int32)
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("SUMS", np.stack([sums, -sums], axis=1)),
                        pb_utils.Tensor("WORDS_ECHO", words),
                        pb_utils.Tensor("MEAN", mean.astype(np.float32)),
                        pb_utils.Tensor("SEEN", seen),
                    ]
                )
            )
        return responses
