"""Image files of every kind, whole and damaged: each is read as RGB, or refused with a clear message."""

import io
import os
import random
import socket
import struct
import threading
import warnings
import zlib

import pytest
from PIL import Image

from timm_attn import image_files
from timm_attn.image_files import find_images, open_image, read_image, to_rgb

MODES = ('1', 'L', 'P', 'LA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F', 'I;16')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM', 'TGA', 'ICO', 'JPEG2000', 'DDS', 'SGI', 'PCX', 'AVIF')


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def picture(mode, size=(24, 16)):
    grey = Image.linear_gradient('L').resize(size)
    image = Image.merge('RGB', (grey, grey, grey.rotate(180)))
    if mode in ('I', 'I;16'):
        return image.convert('L').convert('I').point(lambda v: v * 257).convert(mode)
    if mode == 'LAB':
        return Image.merge('LAB', image.split())
    return image.convert(mode)


def written(mode, form, **options):
    """Bytes of a file, or None where Pillow cannot write it."""
    if mode.startswith('I') and form in ('WEBP', 'GIF', 'AVIF'):  # which Pillow writes all white
        return None
    file = io.BytesIO()
    try:
        picture(mode).save(file, form, **options)
    except Exception:
        return None
    return file.getvalue()


FILES = {(mode, form): data for mode in MODES for form in FORMATS if (data := written(mode, form))}


def read(path):
    """The image, or the message of the refusal."""
    try:
        image = open_image(str(path))
    except ValueError as e:
        message = str(e)
        assert repr(str(path)) in message, message
        assert len(message.splitlines()) == 1, message
        assert not message.rstrip().endswith((':', '()')), message
        return message
    assert image.mode == 'RGB'
    image.tobytes()
    return image


def test_every_mode_in_every_format(attack, tmp_path):
    assert len(FILES) > 50
    for (mode, form), data in FILES.items():
        for suffix in ('.png', '.jpg', ''):  # the name does not matter
            path = tmp_path / f'file{suffix}'
            path.write_bytes(data)
            with attack.case(f'{mode} as {form}, named {path.name}'):
                image = read(path)
                assert isinstance(image, Image.Image), image
                low, high = image.convert('L').getextrema()
                assert low < 100, low  # not all white
                assert high > 155, high


def test_values_of_more_than_eight_bits(attack, tmp_path):
    grey = Image.linear_gradient('L')
    wide = grey.convert('I').point(lambda v: v * 257)
    expected = grey.convert('RGB').tobytes()
    whole = {
        'I;16 PNG': (wide.convert('I;16'), 'png'),
        'I;16 TIFF': (wide.convert('I;16'), 'tiff'),
        'I;16B TIFF': (wide.convert('I;16B'), 'tiff'),
        'I TIFF, 16 bits': (wide, 'tiff'),
        'I TIFF, 8 bits': (grey.convert('I'), 'tiff'),
        'F TIFF, 0 to 1': (grey.convert('F').point(lambda v: v * (1 / 255) + 0), 'tiff'),
        'F TIFF, 0 to 255': (grey.convert('F'), 'tiff'),
    }
    for name, (image, suffix) in whole.items():
        path = tmp_path / f'wide.{suffix}'
        with attack.case(name):
            image.save(path)
            assert read(path).tobytes() == expected
        with attack.case(f'{name}, in memory'):
            before = image.tobytes()
            assert to_rgb(image).tobytes() == expected
            assert image.tobytes() == before
    bad = {'-1': -1.0, '256': 256.0, '1e30': 1e30, 'nan': float('nan'), 'inf': float('inf'), '-inf': float('-inf')}
    for name, value in bad.items():
        for where in ((0, 0), (128, 128), (255, 255)):
            with attack.case(f'F with {name} at {where}'):
                image = grey.convert('F')
                image.putpixel(where, value)
                image.save(tmp_path / 'bad.tiff')
                assert 'its values' in (message := read(tmp_path / 'bad.tiff')) or 'finite' in message, message
    for value in (-1, 65536, 2**31 - 1, -(2**31)):
        with attack.case(f'I with {value}'):
            image = grey.convert('I')
            image.putpixel((7, 7), value)
            image.save(tmp_path / 'bad.tiff')
            assert '0 to 65535' in read(tmp_path / 'bad.tiff')


def test_truncated_files(attack, tmp_path):
    path = tmp_path / 'cut.png'
    for (mode, form), data in FILES.items():
        for tenth in range(10):
            with attack.case(f'{mode} as {form}, {tenth}/10'):
                path.write_bytes(data[: len(data) * tenth // 10])
                read(path)
    for form in ('PNG', 'JPEG', 'WEBP'):
        data = FILES['RGB', form]
        for length in range(0, len(data) - 30, 7):
            with attack.case(f'{form}, {length} bytes'):
                path.write_bytes(data[:length])
                assert isinstance(read(path), str)


def test_flipped_bits(attack, tmp_path):
    rng = random.Random(0)
    path = tmp_path / 'flip.png'
    for (mode, form), data in FILES.items():
        for _ in range(12):
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 3, 20))):
                flipped[rng.randrange(min(len(data), rng.choice((64, len(data)))))] ^= 1 << rng.randrange(8)
            with attack.case(f'{mode} as {form}: {bytes(flipped[:32]).hex()}'):
                path.write_bytes(flipped)
                read(path)


def test_what_is_no_image(attack, tmp_path):
    contents = {
        'nothing': b'',
        'zeros': bytes(1000),
        'text': b'no image',
        'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        'pdf': b'%PDF-1.4\n',
        'zip': b'PK\3\4' + bytes(50),
        'gzip': b'\x1f\x8b' + bytes(50),
        'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n',
        'random': random.Random(1).randbytes(5000),
        'magic of PNG': b'\x89PNG\r\n\x1a\n',
        'magic of JPEG': b'\xff\xd8\xff\xe0',
    }
    for name, data in contents.items():
        for suffix in ('.png', '.jpg', '.tiff', '.webp', ''):
            path = tmp_path / f'file{suffix}'
            path.write_bytes(data)
            with attack.case(f'{name} as {path.name}'):
                assert isinstance(read(path), str)


def png(width, height):
    """Header of a PNG that announces a size, with no pixels behind it."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'x') + chunk(b'IEND', b'')


def test_sizes(attack, tmp_path):
    path = tmp_path / 'size.png'
    for size in ((1, 1), (1, 5000), (5000, 1), (2, 3), (3000, 2)):
        with attack.case(f'{size}'):
            Image.new('RGB', size, 'red').save(path)
            assert read(path).size == size
    for width, height in ((12_000, 12_000), (100_000, 100_000), (2**31 - 1, 1), (89_478_486, 1), (2**30, 2**30)):
        with attack.case(f'announces {width} x {height}'):
            path.write_bytes(png(width, height))
            assert isinstance(read(path), str)
    with attack.case('the most pixels are allowed'):
        path.write_bytes(png(9000, 9000))
        assert 'too many' not in read(path)


def test_large_images_are_in_memory_one_at_a_time(attack, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, '_LARGE', 100)
    Image.new('RGB', (20, 20)).save(tmp_path / 'large.png')
    Image.new('RGB', (5, 5)).save(tmp_path / 'small.png')
    lock, inside, most = threading.Lock(), 0, 0

    def use(image):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.01)
        with lock:
            inside -= 1

    threads = [threading.Thread(target=read_image, args=(str(tmp_path / 'large.png'), use)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with attack.case('eight threads'):
        assert most == 1
    with attack.case('a small one does not wait'):
        read_image(str(tmp_path / 'large.png'), lambda _: open_image(str(tmp_path / 'small.png')))
    with attack.case('a failure lets the next one in'):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                read_image(str(tmp_path / 'large.png'), lambda _: 1 / 0)


def test_a_huge_jpeg_is_decoded_smaller(attack, tmp_path, monkeypatch):
    Image.linear_gradient('L').resize((800, 640)).convert('RGB').save(tmp_path / 'huge.jpg')
    Image.new('RGB', (800, 640)).save(tmp_path / 'huge.png')
    monkeypatch.setattr(image_files, 'MAX_PIXELS', 200_000)
    monkeypatch.setattr(image_files, 'MAX_IMAGE_SIZE', 100)
    with attack.case('JPEG'):
        image = read(tmp_path / 'huge.jpg')
        assert 100 <= min(image.size) < 640
    with attack.case('PNG'):
        assert '800 x 640 pixels are too many' in read(tmp_path / 'huge.png')


def test_orientation(attack, tmp_path):
    upright = Image.merge('RGB', [Image.linear_gradient('L').resize((32, 16)).rotate(180 * i) for i in range(3)])
    upright.paste('red', (0, 0, 8, 4))
    turn = Image.Transpose
    turned = {
        1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip
    for orientation, transpose in turned.items():
        for form in ('PNG', 'TIFF', 'WEBP'):
            with attack.case(f'orientation {orientation}, {form}'):
                exif = Image.Exif()
                exif[0x0112] = orientation
                stored = upright if transpose is None else upright.transpose(transpose)
                lossless = dict(lossless=True) if form == 'WEBP' else {}
                stored.save(tmp_path / 'turned', form, exif=exif, **lossless)
                image = read(tmp_path / 'turned')
                assert image.size == upright.size
                assert image.tobytes() == upright.tobytes()
    rng = random.Random(2)
    garbage = [0, 9, 65535, b'\0', 'x', -1]
    for value in garbage:
        with attack.case(f'orientation {value!r}'):
            exif = Image.Exif()
            exif[0x0112] = value
            try:
                upright.save(tmp_path / 'turned', 'PNG', exif=exif)
            except Exception:
                continue  # Pillow does not write it
            assert read(tmp_path / 'turned').tobytes() == upright.tobytes()
    for i in range(100):
        with attack.case(f'random EXIF {i}'):
            data = b'Exif\0\0' + (b'II*\0' if i % 2 else b'MM\0*') + rng.randbytes(rng.randrange(200))
            upright.save(tmp_path / 'turned', rng.choice(('PNG', 'JPEG', 'WEBP')), exif=data)
            assert isinstance(read(tmp_path / 'turned'), Image.Image)


def test_several_frames_and_transparency(attack, tmp_path):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'green', 'blue')]
    for form in ('GIF', 'WEBP', 'PNG', 'TIFF'):
        with attack.case(f'{form} with three frames'):
            lossless = dict(lossless=True) if form == 'WEBP' else {}
            frames[0].save(tmp_path / 'frames', form, save_all=True, append_images=frames[1:], **lossless)
            assert read(tmp_path / 'frames').getpixel((0, 0)) == (255, 0, 0)
    clear = Image.new('RGBA', (8, 8), (10, 200, 30, 0))
    for form in ('PNG', 'TIFF'):
        with attack.case(f'{form}: transparency is dropped, as timm does'):
            clear.save(tmp_path / 'clear', form)
            assert read(tmp_path / 'clear').getpixel((0, 0)) == (10, 200, 30)
    palette = Image.new('RGB', (8, 8), (10, 200, 30)).convert('P', palette=Image.Palette.ADAPTIVE)
    for transparency in (0, bytes([0, 128, 255])):
        with attack.case(f'palette with transparency {transparency!r}'), warnings.catch_warnings():
            warnings.simplefilter('error')
            palette.save(tmp_path / 'clear', 'PNG', transparency=transparency)
            assert read(tmp_path / 'clear').getpixel((0, 0)) == (10, 200, 30)


def test_files_that_are_none(attack, tmp_path):
    (tmp_path / 'folder').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'folder' / 'good.png')
    os.mkfifo(tmp_path / 'folder' / 'pipe.jpg')
    server = socket.socket(socket.AF_UNIX)
    home = os.getcwd()
    os.chdir(tmp_path / 'folder')  # names of sockets are short
    try:
        server.bind('socket.jpg')
    finally:
        os.chdir(home)
    for name, target in (('zero.jpg', '/dev/zero'), ('null.jpg', '/dev/null'), ('tty.jpg', '/dev/tty')):
        (tmp_path / 'folder' / name).symlink_to(target)
    (tmp_path / 'folder' / 'loop.jpg').symlink_to('loop.jpg')
    (tmp_path / 'folder' / 'gone.jpg').symlink_to('absent.jpg')
    (tmp_path / 'folder' / 'dir.jpg').mkdir()
    (tmp_path / 'folder' / 'up').symlink_to('..')
    (tmp_path / 'folder' / 'self').symlink_to('.')
    (tmp_path / 'folder' / 'again').symlink_to('../folder')
    for name, word in (
        ('pipe', 'pipe'),
        ('socket', 'socket'),
        ('zero', 'device'),
        ('null', 'device'),
        ('tty', 'device'),
    ):
        path = tmp_path / 'folder' / f'{name}.jpg'
        with attack.case(f'{name}: by name'), pytest.raises(ValueError, match=word):
            find_images([str(path)])
        with attack.case(f'{name}: opened'):
            assert word in read(path)
    for name in ('loop', 'gone', 'dir'):
        with attack.case(name):
            with pytest.raises(OSError, match=name):
                find_images([str(tmp_path / 'folder' / f'{name}.jpg')])
            assert isinstance(read(tmp_path / 'folder' / f'{name}.jpg'), str)
    with attack.case('a folder is walked once'):
        assert find_images([str(tmp_path / 'folder')]) == [str(tmp_path / 'folder' / 'good.png')]
    with attack.case('its parent too'):
        assert find_images([str(tmp_path)]) == [str(tmp_path / 'folder' / 'good.png')]
    with attack.case('empty name'), pytest.raises(ValueError, match='empty'):
        find_images([''])
    with attack.case('a link to another folder is followed'):
        (tmp_path / 'other').mkdir()
        (tmp_path / 'other' / 'linked').symlink_to(tmp_path / 'folder')
        assert find_images([str(tmp_path / 'other')]) == [str(tmp_path / 'other' / 'linked' / 'good.png')]
    with attack.case('a deep folder'):
        deep = tmp_path / 'deep' / '/'.join('d' * 400)
        deep.mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(deep / 'good.png')
        assert find_images([str(tmp_path / 'deep')]) == [str(deep / 'good.png')]
    server.close()


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='permissions do not bind this user')
def test_permissions(attack, tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'secret.png')
    (tmp_path / 'secret.png').chmod(0)
    with attack.case('file'):
        assert 'Permission' in read(tmp_path / 'secret.png')


NAMES = ('ü.png', 'a b.png', "it's.png", 'line\nbreak.png', '\x1b[31mred.png', '[1].png', '*.png', '\u202egnp.exe.png',
         '表.png', '%s.png', '{0}.png', '-o.png', '~.png', '\udcff.png', 'x' * 240 + '.png')  # fmt: skip


def test_names(attack, tmp_path):
    for name in NAMES:
        path = tmp_path / name
        with attack.case(repr(name)):
            Image.new('RGB', (8, 8)).save(os.fspath(path))
            assert find_images([str(path)]) == [str(path)]
            assert isinstance(read(path), Image.Image)
            path.write_bytes(b'')
            message = read(path)
            assert isinstance(message, str)
            assert not {'\n', '\x1b'} & set(message)
    with attack.case('all in a folder'):
        assert set(find_images([str(tmp_path)])) == {str(tmp_path / name) for name in NAMES}
