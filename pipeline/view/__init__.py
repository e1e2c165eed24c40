"""The local page over shards and a student: a small server that reads rows as they are looked at. Never a writer.

`library` reads, `catalogue` indexes in the background, `student` asks a process of phase two, `server` answers a
browser; the page itself lies in `page/`, plain files without a build step.
"""
