import os

from lm_eval.tasks.hellaswag.utils import process_docs


def process(documents):
    """HellaSwag's, behind what a text starts with: the harness sends the server no token that is not in the text."""
    begin = os.environ["SPARAMX_TEST_BEGIN"]
    return process_docs(documents).map(lambda document: {"query": begin + document["query"]})
