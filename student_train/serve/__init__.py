"""A student behind HTTP, in the words of the OpenAI API: `engine` writes, `protocol` reads requests, `app` answers."""
