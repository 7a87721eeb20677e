"""Names of the files of an exported model, which may be uploaded, or replaced when a model is written again."""

import re

CARD = "README.md"

MODEL_FILE = re.compile(
    r"README\.md|LICEN[CS]E(\.txt|\.md)?|NOTICE(\.txt|\.md)?|USE_POLICY\.md|\.gitattributes|"
    r"(adapter_|added_|chat_|config|generation_|model|preprocessor_|special_|tokenizer|vocab)[\w.-]*\.json|"
    r"(adapter_)?model[\w.-]*\.safetensors|(spiece|tokenizer)[\w.-]*\.model|(merges|vocab)[\w.-]*\.txt|"
    r"chat_[\w.-]*\.jinja|additional_chat_templates/[\w.-]+\.jinja",
    flags=re.ASCII,
)
"""Paths of a checkpoint's or adapter's files, relative to its folder."""

SAVED_FACTS, PROGRAM, PROMPT, CLASSIFIER = "saved.json", "answer.py", "prompt.txt", "classifier.safetensors"
"""Files of a saved learner, see `dualform.models.export.answering`."""

STUDY_FILES = ("result.json", "report.html", SAVED_FACTS, PROGRAM, PROMPT, CLASSIFIER)
"""Files that dualform writes next to a checkpoint."""

WEIGHTS = re.compile(r"(adapter_)?model[\w.-]*\.safetensors(\.index\.json)?", flags=re.ASCII)
"""Names of weight files and their index."""

PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz|h5|msgpack)", flags=re.IGNORECASE)
"""Names of files that may run code when they are read."""
