from pathlib import Path

import pytest

from fedrecon.datasets import MalformedFile, UnknownDataset, load_stack_exchange
from fedrecon.datasets.html_text import text_of_html

POSTS = """\ufeff<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" CreationDate="2016-08-02T15:39:14.947" Body="&lt;p&gt;Zo&#xEB;'s tea.&lt;/p&gt;" OwnerUserId="10" />
  <row Id="2" CreationDate="2016-08-01T00:00:00.000" Body="&lt;p&gt;Older.&lt;/p&gt;" OwnerUserId="9" />
  <row Id="3" CreationDate="2016-08-03T00:00:00.000" Body="&lt;p&gt;A robot.&lt;/p&gt;" OwnerUserId="-1" />
  <row Id="4" CreationDate="2016-08-03T00:00:00.000" Body="&lt;p&gt;Nobody.&lt;/p&gt;" />
</posts>
"""
COMMENTS = """<?xml version="1.0" encoding="utf-8"?>
<comments>
  <row Id="1" PostId="1" Text="Is 1 &lt; 2?" CreationDate="2016-08-01T12:00:00.500" UserId="10" />
  <row Id="2" PostId="1" Text="Gone." CreationDate="2016-08-01T12:00:00.500" UserDisplayName="ghost" />
</comments>
"""


def write_site(folder: Path, posts: str = POSTS, comments: str | None = COMMENTS) -> Path:
    folder.mkdir(parents=True)
    (folder / "Posts.xml").write_text(posts, encoding="utf-8")
    if comments is not None:
        (folder / "Comments.xml").write_text(comments, encoding="utf-8")
    return folder


def test_posts_and_comments_of_people_become_texts(tmp_path: Path) -> None:
    texts = load_stack_exchange(write_site(tmp_path / "tea"))
    assert texts.texts == ("Zoë's tea.", "Older.", "Is 1 < 2?")
    assert texts.user_keys == ("tea/9", "tea/10")
    assert texts.users.tolist() == [1, 0, 1]
    assert texts.timestamps.tolist() == [1470152354947, 1470009600000, 1470052800500]


def test_a_users_texts_come_oldest_first_whatever_the_file(tmp_path: Path) -> None:
    texts = load_stack_exchange(write_site(tmp_path / "tea"))
    assert [own.tolist() for own in texts.by_user()] == [[1], [2, 0]]


def test_users_of_two_sites_with_one_number_are_two(tmp_path: Path) -> None:
    write_site(tmp_path / "tea")
    write_site(tmp_path / "coffee", comments=None)
    texts = load_stack_exchange(tmp_path)
    assert texts.user_keys == ("coffee/9", "coffee/10", "tea/9", "tea/10")
    assert texts.texts_per_user().tolist() == [1, 1, 1, 2]


def test_users_who_wrote_little_are_left_out(tmp_path: Path) -> None:
    texts = load_stack_exchange(write_site(tmp_path / "tea")).of_active_users(2)
    assert texts.user_keys == ("tea/10",)
    assert texts.texts == ("Zoë's tea.", "Is 1 < 2?")
    assert texts.users.tolist() == [0, 0]


def test_a_folder_without_posts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownDataset, match=r"holds no posts: looked for Posts\.xml"):
        load_stack_exchange(tmp_path)
    with pytest.raises(UnknownDataset, match="is no folder"):
        load_stack_exchange(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        (' CreationDate="2016-08-01T00:00:00.000"', "", 4, "a row without CreationDate"),
        ("2016-08-01T00:00:00.000", "yesterday", 4, "the CreationDate 'yesterday' is not a date"),
        ('OwnerUserId="9"', 'OwnerUserId="nine"', 4, "the OwnerUserId 'nine' is not a whole number"),
        ("<row Id", "<line Id", 3, "expected the element 'row', found 'line'"),
        ("<posts>", "<users>", 2, "expected the element 'posts', found 'users'"),
        ("</posts>", "", 8, "not XML: no element found"),
        ("Older.", "<Older", 4, "not XML: not well-formed"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(old: str, new: str, line: int, reason: str, tmp_path: Path) -> None:
    site = write_site(tmp_path / "tea", posts=POSTS.replace(old, new, 1))
    with pytest.raises(MalformedFile, match=reason) as refused:
        load_stack_exchange(site)
    assert refused.value.path == site / "Posts.xml"
    assert refused.value.line == line


def test_a_file_that_declares_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n<posts>'
    site = write_site(tmp_path / "tea", posts=POSTS.replace("<posts>", bomb))
    with pytest.raises(MalformedFile, match="declares an entity"):
        load_stack_exchange(site)


def test_a_plain_document_type_is_read(tmp_path: Path) -> None:
    posts = POSTS.replace("<posts>", "<!DOCTYPE posts SYSTEM 'posts.dtd'>\n<posts>")
    assert len(load_stack_exchange(write_site(tmp_path / "tea", posts=posts))) == 3


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One\ntwo.</p>\n\n<p>Three</p>", "One two.\nThree"),
        ("<p>Call <code>f(x)</code>:</p><pre><code>x = 1\n</code></pre>then", "Call f(x):\nthen"),
        ("a<br>b<br/>c<ul><li>d</li><li>e</li></ul>", "a\nb\nc\nd\ne"),
        ("<p>1 &lt; 2 &amp;&nbsp;3</p>", "1 < 2 & 3"),
        ("<p>broken <b>bold", "broken bold"),
        ("</pre>still there", "still there"),
        ("", ""),
    ],
)
def test_html_becomes_text_without_blocks_of_code(html: str, text: str) -> None:
    assert text_of_html(html) == text
