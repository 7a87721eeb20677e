"""Which files belong to a written model: they may be sent to the hub, and replaced when one is written anew."""

import re

CARD = "README.md"

PART_OF_A_MODEL = re.compile(
    r"README\.md|LICEN[CS]E(\.txt|\.md)?|NOTICE(\.txt|\.md)?|USE_POLICY\.md|\.gitattributes|"
    r"(adapter_|added_|chat_|config|generation_|model|preprocessor_|special_|tokenizer|vocab)[\w.-]*\.json|"
    r"(adapter_)?model[\w.-]*\.safetensors|(spiece|tokenizer)[\w.-]*\.model|(merges|vocab)[\w.-]*\.txt|"
    r"chat_[\w.-]*\.jinja|additional_chat_templates/[\w.-]+\.jinja",
    flags=re.ASCII,
)
"""Names of what belongs to a checkpoint or an adapter, seen from its folder."""

OF_A_STUDY = ("result.json", "report.html")
"""What `dualform fold` and `dualform report` leave next to a checkpoint."""

WEIGHTS = re.compile(r"(adapter_)?model[\w.-]*\.safetensors(\.index\.json)?", flags=re.ASCII)
"""Names of weights and of their index."""

PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz|h5|msgpack)", flags=re.IGNORECASE)
"""Names of files that may run code when they are read."""
